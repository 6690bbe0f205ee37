"""Several HTTP workers before one engine: each accepts, reads, tokenizes and answers in a process of its own.

The server's process keeps the listening socket, the models' queues and engines, and decides when a model is loaded; a
worker reaches them through sockets: a control channel (server/control.py), and one for each loaded model (bei.remote).
A worker that dies is replaced, and a worker whose server dies ends. `python -m bei.server.workers LISTENER CONTROL` is
a worker.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from bei import memory, processes, wire
from bei.errors import SetupError, one_line
from bei.remote import WorkerSession
from bei.server import hosting, listen, worker
from bei.server.control import Ended, Model, Served, Unloaded, Unwanted, Used, Wanted, WorkerSetup
from bei.server.links import Link
from bei.serving.registry import Registry
from bei.serving.service import Service

log = logging.getLogger("bei")

_MARGIN = 5.0  # seconds that a worker has in addition to the drain


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
        status = hosting.answer_calls(registry, listener, load)
    registry.close()
    return status


class _Workers:
    """It is the keeper's audience, and tells the workers."""

    def __init__(self, registry: Registry, listener: socket.socket, announce: Callable[[], None]):
        self._registry, self._listener, self._announce = registry, listener, announce
        self._settings = registry.settings
        self._status = 0
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._counter = count()
        self._numbers = {service: next(self._counter) for service in registry.services}
        self._opened: set[Service] = set()
        self._first: set[Link] | None = set()
        """The first workers, until all are there and have joined their models; then None."""
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._loaded, self._stopping = threading.Event(), threading.Event()
        registry.keeper.audience = self

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
            self._loaded.set()

    def _fail(self, fault: str) -> None:
        log.error("%s", fault)
        self._status = 2
        self._stopping.set()

    # -- the processes -------------------------------------------------------------------------------------------------

    def _keep(self, number: int) -> None:
        restarts = processes.Restarts(self._settings.max_engine_restarts)
        while not self._stopping.is_set():
            started = time.monotonic()
            ours, theirs = socket.socketpair()
            process = self._start(theirs)
            self._processes.add(process)
            if self._stopping.is_set():  # the stop came before the process was registered
                process.terminate()
            link = Link(ours, self._act)
            self._introduce(link)
            status = self._wait(process)
            self._processes.discard(process)
            self._part(link)
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
        if self._first is not None or not self._processes:
            self._fail(f"worker {number} {fault}: the server ends")
        else:
            log.error("worker %d %s; the others go on without it", number, fault)

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        numbers = self._listener.fileno(), control.fileno()
        # Ctrl-C of a terminal is for this process, which passes it on.
        process = processes.start("bei.server.workers", *numbers, pass_fds=numbers, start_new_session=True)
        control.close()
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """The status of a worker; once we stop, it has to drain in time."""
        while not self._stopping.is_set():
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        return processes.end(process, self._settings.drain_seconds + _MARGIN)

    # -- their beginning -----------------------------------------------------------------------------------------------

    def _introduce(self, link: Link) -> None:
        """Tells a worker its models, at first their settings and, once that is known, which of them are loaded."""
        served = self._registry.services
        link.tell(self._setup(), *(self._model(service) for service in served))
        self._loaded.wait()
        if self._stopping.is_set():
            link.close()
            return
        with self._lock:
            self._links.append(link)
            if self._first is not None:
                self._first.add(link)
            now = self._registry.services
            link.tell(*(self._model(service) for service in self._numbers if service not in served))
            for service in self._numbers:
                self._say(link, service)
            link.tell(Served([self._numbers[service] for service in now]))
        self._open_first()

    def _say(self, link: Link, service: Service, fault: str | None = None) -> None:
        number = self._numbers[service]
        if service in self._opened:
            link.open(number, service, self._on_joined)
        elif service.checkpoint is not None:
            link.tell(self._unloaded(service, fault))

    def _unloaded(self, service: Service, fault: str | None = None, *, is_gone: bool = False) -> Unloaded:
        known = service.known()
        return Unloaded(
            number=self._numbers[service],
            folder=str(known.folder),
            revision=known.revision,
            fault=fault,
            is_gone=is_gone,
        )

    def _part(self, link: Link) -> None:
        with self._lock:
            if link in self._links:
                self._links.remove(link)
            if self._first is not None:
                self._first.discard(link)
        link.close()

    def _setup(self) -> WorkerSetup:
        return WorkerSetup(
            keys=[key.get_secret_value() for key in self._settings.api_key],
            log_level=logging.getLevelName(log.getEffectiveLevel()),
            is_late=self._first is None,
            metrics_folder=str(self._registry.metrics.folder),
        )

    def _model(self, service: Service) -> Model:
        settings = service.settings.redacted()
        return Model(number=self._numbers[service], settings=settings.model_dump_json())

    def _on_joined(self, session: WorkerSession) -> None:
        """The first workers open together, so that a ready server is ready as a whole; later ones open at once."""
        with self._lock:
            if self._first is None or not any(session in link.sessions.values() for link in self._first):
                session.open()
        self._open_first()

    def _open_first(self) -> None:
        with self._lock:
            if self._first is None or len(self._first) < self._settings.workers:
                return
            sessions = [session for link in self._first for session in link.sessions.values()]
            if not all(session.has_joined for session in sessions):
                return
            for session in sessions:
                session.open()
            self._first = None
        self._announce()

    # -- what workers say ----------------------------------------------------------------------------------------------

    def _act(self, link: Link, message: Wanted | Unwanted | Used) -> None:
        by_number = {number: service for service, number in list(self._numbers.items())}
        numbers = message.numbers if isinstance(message, Used) else [message.number]
        for service in filter(None, map(by_number.get, numbers)):
            if isinstance(message, Used):
                service.leases.touch()
            elif isinstance(message, Wanted):
                self._registry.keeper.want(service)
            else:
                threading.Thread(target=self._end_for, args=(link, service), daemon=True).start()

    def _end_for(self, link: Link, service: Service) -> None:
        number = self._numbers.get(service)
        self._registry.keeper.end(service, "as asked")
        if number is not None:
            link.tell(Ended(number))

    # -- what the keeper says ------------------------------------------------------------------------------------------

    def added(self, service: Service) -> None:
        with self._lock:
            self._numbers[service] = next(self._counter)
            for link in self._links:
                link.tell(self._model(service))
                self._say(link, service)

    def opened(self, service: Service) -> None:
        service.on_fault(self._tell_fault)
        with self._lock:
            self._opened.add(service)
            for link in self._links:
                self._say(link, service)

    def failed(self, service: Service, fault: str) -> None:
        with self._lock:
            for link in self._links:
                self._say(link, service, fault)

    def ending(self, service: Service, *, is_gone: bool) -> None:
        """Waits until no worker uses the model."""
        with self._lock:
            if service not in self._numbers:
                return
            self._opened.discard(service)
            ended = [link.sessions.pop(service) for link in self._links if service in link.sessions]
            for link in self._links:
                link.tell(self._unloaded(service, is_gone=is_gone))
            if is_gone:
                del self._numbers[service]
        for session in ended:  # it may wait for the other first workers
            session.open()
        self._open_first()
        for session in ended:
            service.waits(session.ended.wait, self._settings.drain_seconds + _MARGIN)

    def replaced(self, services: Sequence[Service]) -> None:
        with self._lock:
            for link in self._links:
                link.tell(Served([self._numbers[service] for service in services]))

    def _tell_fault(self) -> None:
        for link in list(self._links):
            for session in list(link.sessions.values()):
                session.tell_fault()


if __name__ == "__main__":
    try:
        sys.exit(worker.work(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
    except ConnectionError:  # the server is gone
        pass
    except wire.UnknownMessage as exc:
        sys.exit(f"a worker got {one_line(exc)}")
