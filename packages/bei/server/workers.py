"""Several HTTP workers before one engine: each accepts, reads, tokenizes and answers in a process of its own.

The server's process keeps the listening socket, the queue and the engine; a worker reaches them through a socket
(bei.remote). A worker that dies is replaced, and a worker whose server dies ends. `python -m bei.server.workers
LISTENER CHANNEL ...` is a worker, with a channel for each model.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bei import logs, memory, processes, tracing, wire
from bei.checkpoint.load import read_for
from bei.engines.base import EngineFacts
from bei.errors import SetupError, one_line
from bei.metrics import Metrics
from bei.remote import RemoteEngine, RemoteScheduler, WorkerSession
from bei.server import listen
from bei.server.app import asgi
from bei.server.hosts import hosts_of, is_local
from bei.server.proxies import behind_proxy
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import ObservationSettings, ServerSettings, Settings

log = logging.getLogger("bei")

_SWITCH = 0.0005  # seconds for which a thread that reads a bulk may keep the interpreter from one that reads a query
_MARGIN = 5.0  # seconds that a worker has in addition to the drain


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """To a new worker. `settings` are JSON, one per model, without secrets except the API's `keys`. `is_late`: the
    other workers answer already."""

    settings: list[str]
    keys: list[str]
    log_level: str
    is_late: bool
    metrics_folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """To a worker, on the channel of a model, once it is loaded: the checkpoint and the engine's facts."""

    folder: str
    revision: str | None


_SETUPS = wire.Reader(WorkerSetup)
_MODELS = wire.Reader[Any](LoadedModel, EngineFacts)


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


def serve(registry: Registry, listener: socket.socket, announce: Callable[[], None]) -> int:
    """Loads the models and serves until a signal, in this process or in `settings.workers` others; returns the exit
    status. `announce` is called when all of them answer."""

    def load() -> None:
        registry.load()
        memory.settle()
        announce()

    if registry.settings.workers > 1:
        status = _Workers(registry, listener, announce).serve()
    else:
        status = _serve_here(registry, listener, load)
    registry.close()
    return status


def _serve_here(registry: Registry, listener: socket.socket, load: Callable[[], None]) -> int:
    settings = registry.settings
    registry.is_local = is_local(listener, settings)
    sys.setswitchinterval(_SWITCH)
    return listen.serve(
        *(behind_proxy(asgi(registry, hosts_of(listener, settings.allowed_host)), settings), listener),
        load=load,
        on_stop=registry.drain,
        drain_seconds=settings.drain_seconds,
        max_connections=settings.max_connections,
        secure=listen.tls(settings.tls_cert, settings.tls_key),
    )


class _Workers:
    """Each worker has a channel for each model."""

    def __init__(self, registry: Registry, listener: socket.socket, announce: Callable[[], None]):
        self._registry, self._listener, self._announce = registry, listener, announce
        self._settings = registry.settings
        self._status = 0
        self._sessions: list[WorkerSession] = []
        self._joined: list[WorkerSession] | None = []  # those that wait for the others; None once all are there
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._loaded, self._stopping = threading.Event(), threading.Event()

    def serve(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._listener.listen(listen.BACKLOG)
        keepers = [threading.Thread(target=self._keep, args=(i,)) for i in range(self._settings.workers)]
        for thread in (*keepers, threading.Thread(target=self._load, daemon=True)):
            thread.start()
        self._stopping.wait()
        self._registry.drain()
        self._loaded.set()
        for process in list(self._processes):
            process.terminate()
        for thread in keepers:
            thread.join()
        return self._status

    def _on_signal(self, number: int, _: object) -> None:
        if self._stopping.is_set():
            for process in self._processes:
                process.kill()
            os._exit(128 + number)
        self._stopping.set()

    def _load(self) -> None:
        try:
            self._registry.load()
        except SetupError as exc:
            self._fail(exc.message)
        except Exception:
            log.exception("loading failed")
            self._fail("the model cannot be loaded")
        else:
            memory.settle()
            for service in self._registry.services:
                service.on_fault(self._tell_fault)
            self._loaded.set()

    def _tell_fault(self) -> None:
        for session in self._sessions:
            session.tell_fault()

    def _fail(self, fault: str) -> None:
        log.error("%s", fault)
        self._status = 2
        self._stopping.set()

    def _keep(self, number: int) -> None:
        restarts = processes.Restarts(self._settings.max_engine_restarts)
        while not self._stopping.is_set():
            started = time.monotonic()
            ours, theirs = zip(*(socket.socketpair() for _ in self._registry.services), strict=True)
            process = self._start(theirs)
            self._processes.add(process)
            if self._stopping.is_set():  # the stop came before the process was registered
                process.terminate()
            sessions = self._introduce(ours)
            status = self._wait(process)
            self._processes.discard(process)
            for session in sessions:
                self._sessions.remove(session)
            self._registry.metrics.forget(process.pid)
            if self._stopping.is_set():
                return
            how, pause = processes.how(status), restarts.pause(time.monotonic() - started)
            if pause is None:
                self._do_without(number, f"died {restarts.in_a_row} times in a row, at last by {how}")
                return
            log.error("worker %d died by %s; starting another", number, how)
            self._stopping.wait(pause)

    def _do_without(self, number: int, fault: str) -> None:
        """The other workers continue, if all had joined and some are left."""
        if self._joined is not None or not self._processes:
            self._fail(f"worker {number} {fault}: the server ends")
        else:
            log.error("worker %d %s; the others go on without it", number, fault)

    def _start(self, channels: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
        numbers = [self._listener.fileno(), *(channel.fileno() for channel in channels)]
        # Ctrl-C of a terminal is for this process, which passes it on.
        process = processes.start("bei.server.workers", *numbers, pass_fds=numbers, start_new_session=True)
        for channel in channels:
            channel.close()
        return process

    def _introduce(self, channels: Sequence[socket.socket]) -> list[WorkerSession]:
        """Sends a worker its setup and, once they are loaded, the models; no session if the worker died before."""
        try:
            wire.send(channels[0], self._setup())
            self._loaded.wait()
            if self._stopping.is_set():
                raise ConnectionAbortedError
            models = [service.model for service in self._registry.services]
            for model, channel in zip(models, channels, strict=True):
                loaded = LoadedModel(folder=str(model.checkpoint.folder), revision=model.checkpoint.revision)
                wire.send(channel, loaded, model.engine.facts)
        except OSError:
            for channel in channels:
                channel.close()
            return []
        sessions = [
            WorkerSession(channel, model.scheduler, model.engine, self._on_joined)
            for model, channel in zip(models, channels, strict=True)
        ]
        for session in sessions:
            session.tell_fault()
        self._sessions += sessions
        return sessions

    def _setup(self) -> WorkerSetup:
        services = self._registry.services
        return WorkerSetup(
            settings=[service.settings.redacted().model_dump_json() for service in services],
            keys=[key.get_secret_value() for key in self._settings.api_key],
            log_level=logging.getLevelName(log.getEffectiveLevel()),
            is_late=self._joined is None,
            metrics_folder=str(self._registry.metrics.folder),
        )

    def _on_joined(self, session: WorkerSession) -> None:
        """The first workers open together, so that a ready server is ready as a whole; later ones open at once."""
        with self._lock:
            if self._joined is None:
                session.open()
                return
            self._joined.append(session)
            if len(self._joined) < self._settings.workers * len(self._registry.services):
                return
            for waiting in self._joined:
                waiting.open()
            self._joined = None
        self._announce()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """The status of a worker; once we stop, it has to drain in time."""
        while not self._stopping.is_set():
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        return processes.end(process, self._settings.drain_seconds + _MARGIN)


def _work(listener: socket.socket, *channels: socket.socket) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the server
    (setup,) = _SETUPS.receive(channels[0])
    keys = {"api_key": tuple(map(SecretStr, setup.keys))}
    settings = [Settings.model_validate_json(content).model_copy(update=keys) for content in setup.settings]
    start_logs(settings[0], setup.log_level)
    with tracer_of(settings[0]) as tracer:
        registry = Registry.of(settings, Metrics(Path(setup.metrics_folder)), tracer)
        return _serve_as_worker(channels, listener, registry, is_late=setup.is_late)


def _serve_as_worker(
    channels: Sequence[socket.socket], listener: socket.socket, registry: Registry, *, is_late: bool
) -> int:
    def load() -> None:
        with ThreadPoolExecutor(len(channels), "join") as pool:  # they open together, so none waits for another
            list(pool.map(_join, registry.services, channels))
        memory.settle()

    if is_late:  # others answer meanwhile
        load()
    status = _serve_here(registry, listener, (lambda: None) if is_late else load)
    registry.close()
    return status


def _join(service: Service, channel: socket.socket) -> None:
    """Serves a model whose scheduler is in the server's process."""
    try:
        loaded, facts = _MODELS.receive(channel)
    except ConnectionError:  # the server refused to start, and has said why
        os._exit(0)
    engine = RemoteEngine(facts)
    scheduler = RemoteScheduler(channel, engine, on_loss=lambda: os._exit(1))
    checkpoint = read_for(service.settings, Path(loaded.folder), loaded.revision)
    service.join(checkpoint, engine, scheduler, scheduler.wait_until_open)


if __name__ == "__main__":
    try:
        sys.exit(_work(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
    except ConnectionError:  # the server is gone
        pass
    except wire.UnknownMessage as exc:
        sys.exit(f"a worker got {one_line(exc)}")
