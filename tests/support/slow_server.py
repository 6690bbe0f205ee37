"""A server with a slow engine; prints its port. Takes FOLDER LOAD_SECONDS BATCH_SECONDS PATIENCE SETTINGS, as JSON; a
PATIENCE above 0 is how many seconds it waits for clients. SIGUSR1 ends its load, or the batch that runs."""

import json
import logging
import signal
import sys
import threading
from pathlib import Path

from bei.checkpoint.load import read
from bei.engines.null import NullEngine
from bei.errors import SetupError
from bei.server import body_reader, connections, listen
from bei.server.app import asgi
from bei.server.hosts import hosts_of
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config

folder, load_seconds, batch_seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
logging.basicConfig(level="INFO")
if patience := float(sys.argv[4]):
    connections.REQUEST_HEAD_SECONDS = connections.READING_SECONDS = body_reader.SECONDS = patience
    connections.KEEP_ALIVE_SECONDS = 3 * patience
    connections.READING_RATE = 1 << 30
service = Service(Settings.load(tiny_config(folder), environ={}, **json.loads(sys.argv[5])))
settings = service.settings


class SlowEngine(NullEngine):
    def run(self, batch):
        if len(batch.input_ids) > 3:  # the warm-up and probes are quick
            go_on.wait(batch_seconds)  # the engine's time
            go_on.clear()
        return super().run(batch)


go_on = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: go_on.set())


def load() -> None:
    go_on.wait(load_seconds)  # the time of a start
    go_on.clear()
    if batch_seconds < 0:
        raise SetupError("it cannot be loaded")
    checkpoint = read(folder, "tiny")
    service.start(checkpoint, SlowEngine(checkpoint))


listener = listen.bind("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)  # noqa: T201  the test reads it
status = listen.serve(
    asgi(Registry(service), hosts_of(listener, settings.allowed_host)),
    listener,
    load=load,
    on_stop=service.drain,
    drain_seconds=settings.drain_seconds,
    max_connections=settings.max_connections,
    secure=listen.tls(settings.tls_cert, settings.tls_key),
)
service.close()
sys.exit(status)
