"""Several HTTP workers before one engine: each accepts, reads, tokenizes and answers in a process of its own.

The server's process keeps the listening socket, the queue and the engine; a worker reaches them through a socket
(bei.remote). A worker that dies is replaced, and a worker whose server dies ends. `python -m bei.server.workers LINE
LISTENER` is a worker.
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
from collections.abc import Callable, Iterator
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
from bei.server.hosts import hosts_of
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import ObservationSettings, ServerSettings, Settings

log = logging.getLogger("bei")

_SWITCH = 0.0005  # seconds for which a thread that reads a bulk may keep the interpreter from one that reads a query
_MARGIN = 5.0  # seconds that a worker has in addition to the drain


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """To a new worker. `settings` are JSON, without secrets except the API's `keys`. `is_late`: the other workers
    answer already."""

    settings: str
    keys: list[str]
    log_level: str
    is_late: bool
    metrics_folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """To a worker, once the model is loaded: the checkpoint and the engine's facts."""

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


def serve(service: Service, listener: socket.socket, announce: Callable[[], None]) -> int:
    """Loads the model and serves until a signal, in this process or in `settings.workers` others; returns the exit
    status. `announce` is called when all of them answer."""

    def load() -> None:
        service.load()
        memory.settle()
        announce()

    if service.settings.workers > 1:
        status = _Workers(service, listener, announce).serve()
    else:
        status = _serve_here(service, listener, load)
    service.close()
    return status


def _serve_here(service: Service, listener: socket.socket, load: Callable[[], None]) -> int:
    settings = service.settings
    sys.setswitchinterval(_SWITCH)
    return listen.serve(
        *(asgi(Registry(service), hosts_of(listener, settings.allowed_host)), listener),
        load=load,
        on_stop=service.drain,
        drain_seconds=settings.drain_seconds,
        max_connections=settings.max_connections,
        secure=listen.tls(settings.tls_cert, settings.tls_key),
    )


class _Workers:
    def __init__(self, service: Service, listener: socket.socket, announce: Callable[[], None]):
        self._service, self._listener, self._announce = service, listener, announce
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
        keepers = [threading.Thread(target=self._keep, args=(i,)) for i in range(self._service.settings.workers)]
        for thread in (*keepers, threading.Thread(target=self._load, daemon=True)):
            thread.start()
        self._stopping.wait()
        self._service.drain()
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
            self._service.load()
        except SetupError as exc:
            self._fail(exc.message)
        except Exception:
            log.exception("loading failed")
            self._fail("the model cannot be loaded")
        else:
            memory.settle()
            self._service.on_fault(self._tell_fault)
            self._loaded.set()

    def _tell_fault(self) -> None:
        for session in self._sessions:
            session.tell_fault()

    def _fail(self, fault: str) -> None:
        log.error("%s", fault)
        self._status = 2
        self._stopping.set()

    def _keep(self, number: int) -> None:
        restarts = processes.Restarts(self._service.settings.max_engine_restarts)
        while not self._stopping.is_set():
            started = time.monotonic()
            ours, theirs = socket.socketpair()
            with theirs:
                process = self._start(theirs)
            self._processes.add(process)
            if self._stopping.is_set():  # the stop came before the process was registered
                process.terminate()
            session = self._introduce(ours)
            status = self._wait(process)
            self._processes.discard(process)
            if session is not None:
                self._sessions.remove(session)
            self._service.metrics.forget(process.pid)
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

    def _start(self, channel: socket.socket) -> subprocess.Popen[bytes]:
        numbers = [channel.fileno(), self._listener.fileno()]
        # Ctrl-C of a terminal is for this process, which passes it on.
        return processes.start("bei.server.workers", *numbers, pass_fds=numbers, start_new_session=True)

    def _introduce(self, channel: socket.socket) -> WorkerSession | None:
        """Sends a worker its setup and, once there is one, the model; None if the worker died before."""
        service = self._service
        keys = [key.get_secret_value() for key in service.settings.api_key]
        level = logging.getLevelName(log.getEffectiveLevel())
        try:
            is_late = self._joined is None
            content = service.settings.redacted().model_dump_json()
            folder = str(service.metrics.folder)
            wire.send(
                channel,
                WorkerSetup(settings=content, keys=keys, log_level=level, is_late=is_late, metrics_folder=folder),
            )
            self._loaded.wait()
            if self._stopping.is_set():
                channel.close()
                return None
            model = service.model
            loaded = LoadedModel(folder=str(model.checkpoint.folder), revision=model.checkpoint.revision)
            wire.send(channel, loaded, model.engine.facts)
        except OSError:
            channel.close()
            return None
        session = WorkerSession(channel, model.scheduler, model.engine, self._on_joined)
        session.tell_fault()
        self._sessions.append(session)
        return session

    def _on_joined(self, session: WorkerSession) -> None:
        """The first workers open together, so that a ready server is ready as a whole; later ones open at once."""
        with self._lock:
            if self._joined is None:
                session.open()
                return
            self._joined.append(session)
            if len(self._joined) < self._service.settings.workers:
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
        return processes.end(process, self._service.settings.drain_seconds + _MARGIN)


def _work(channel: socket.socket, listener: socket.socket) -> int:
    (setup,) = _SETUPS.receive(channel)
    settings = Settings.model_validate_json(setup.settings)
    settings = settings.model_copy(update={"api_key": tuple(map(SecretStr, setup.keys))})
    start_logs(settings, setup.log_level)
    with tracer_of(settings) as tracer:
        service = Service(settings, Metrics(Path(setup.metrics_folder)), tracer)
        return _serve_as_worker(channel, listener, service, is_late=setup.is_late)


def _serve_as_worker(channel: socket.socket, listener: socket.socket, service: Service, *, is_late: bool) -> int:
    settings = service.settings

    def load() -> None:
        try:
            loaded, facts = _MODELS.receive(channel)
        except ConnectionError:  # the server refused to start, and has said why
            os._exit(0)
        engine = RemoteEngine(facts)
        scheduler = RemoteScheduler(channel, engine, on_loss=lambda: os._exit(1))
        checkpoint = read_for(settings, Path(loaded.folder), loaded.revision)
        service.join(checkpoint, engine, scheduler, scheduler.wait_until_open)
        memory.settle()

    if is_late:  # others answer meanwhile
        load()
    status = _serve_here(service, listener, (lambda: None) if is_late else load)
    service.close()
    return status


if __name__ == "__main__":
    try:
        sys.exit(_work(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
    except ConnectionError:  # the server is gone
        pass
    except wire.UnknownMessage as exc:
        sys.exit(f"a worker got {one_line(exc)}")
