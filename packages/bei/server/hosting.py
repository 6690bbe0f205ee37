"""The parts that every process of a server has: logs, metrics, traces, and the loop that answers."""

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bei import logs, tracing
from bei.api import answer_line
from bei.jobs.store import Store
from bei.metrics import Metrics
from bei.server import listen
from bei.server.app import asgi
from bei.server.hosts import hosts_of, is_local
from bei.server.proxies import behind_proxy
from bei.serving.registry import Registry
from bei.settings import ObservationSettings, ServerSettings

_SWITCH = 0.0005  # seconds for which a thread that reads a bulk may keep the interpreter from one that reads a query


def start_logs(settings: ObservationSettings, level: str) -> None:
    """Starts the logs of this process according to the settings."""
    logs.to_stderr(level, as_json=settings.json_output, requests=settings.access_log)


@contextmanager
def metrics_of(settings: ServerSettings) -> Iterator[Metrics]:
    """The metrics of this process and of its future workers."""
    if settings.workers == 1:
        yield Metrics()
        return
    with tempfile.TemporaryDirectory(prefix="bei-metrics-") as folder:
        yield Metrics(Path(folder))


@contextmanager
def tracer_of(settings: ObservationSettings) -> Iterator[tracing.Tracer | None]:
    """The tracer of the settings; remaining spans are sent at the end. Raises SetupError."""
    if settings.otlp_endpoint is None:
        yield None
        return
    tracer = tracing.to_collector(settings.otlp_endpoint, settings.otlp_service_name)
    try:
        yield tracer
    finally:
        tracer.stop()


def answer_calls(registry: Registry, listener: socket.socket, load: Callable[[], None]) -> int:
    """Answers in this process until a signal; `load` runs meanwhile, in a thread. Returns the exit status. Raises
    SetupError."""
    settings = registry.settings
    registry.is_local = is_local(listener, settings)
    sys.setswitchinterval(_SWITCH)
    with _jobs_of(registry) as (start, stop):

        def begin() -> None:
            load()
            start()

        def end() -> None:
            stop()
            registry.drain()

        return listen.serve(
            *(behind_proxy(asgi(registry, hosts_of(listener, settings.allowed_host)), settings), listener),
            load=begin,
            on_stop=end,
            drain_seconds=settings.drain_seconds,
            max_connections=settings.max_connections,
            secure=listen.tls(settings.tls_cert, settings.tls_key),
        )


@contextmanager
def _jobs_of(registry: Registry) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """How jobs begin to run, and how they stop, where the settings have a folder for them. At the end of the block they
    have stopped."""
    store = registry.jobs = Store.of(registry.settings)
    if store is None:
        yield (lambda: None), (lambda: None)
        return
    from bei.jobs.runner import Runner  # where there are jobs

    runner = Runner(store, partial(answer_line, registry), registry.metrics)
    try:
        yield runner.start, runner.stop
    finally:
        runner.stop()
        runner.join()
