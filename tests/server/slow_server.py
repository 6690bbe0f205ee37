"""A server whose engine takes its time; prints its port. Takes FOLDER LOAD_SECONDS BATCH_SECONDS [PAYLOAD_LIMIT]."""

import logging
import sys
import time
from pathlib import Path

from bei.checkpoint.load import read
from bei.engines.null import NullEngine
from bei.errors import SetupError
from bei.server import listen
from bei.server.app import asgi
from bei.service import Service
from bei.settings import Settings
from tests.conftest import tiny_config

folder, load_seconds, batch_seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
logging.basicConfig(level="INFO")
limits = {"payload_limit": int(sys.argv[4])} if len(sys.argv) > 4 else {}
service = Service(Settings.load(tiny_config(folder), environ={}, **limits))


class SlowEngine(NullEngine):
    def run(self, batch):
        if len(batch.input_ids) > 3:  # the warm-up and probes are quick
            time.sleep(batch_seconds)
        return super().run(batch)


def load() -> None:
    time.sleep(load_seconds)
    if batch_seconds < 0:
        raise SetupError("it cannot be loaded")
    checkpoint = read(folder, "tiny")
    service.start(checkpoint, SlowEngine(checkpoint))


listener = listen.bind("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)  # noqa: T201  the test reads it
status = listen.serve(asgi(service), listener, load=load, on_stop=service.drain, drain_seconds=5)
service.close()
sys.exit(status)
