"""The server's end of the control channel of a worker, with the worker's channels to loaded models."""

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bei import wire
from bei.remote import WorkerSession
from bei.server.control import FROM_WORKER, Opened, Unwanted, Used, Wanted
from bei.serving.service import Service

log = logging.getLogger("bei")


class Link:
    """`act` is called with each message of the worker."""

    def __init__(self, control: socket.socket, act: Callable[["Link", Wanted | Unwanted | Used], None]):
        self._control, self._act = control, act
        self._sending = threading.Lock()
        self.sessions: dict[Service, WorkerSession] = {}
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def tell(self, *messages: Any) -> None:
        if messages:
            with self._sending, suppress(OSError):  # the worker is gone, and its end is noticed elsewhere
                wire.send(self._control, *messages)

    def open(self, number: int, service: Service, on_joined: Callable[[WorkerSession], None]) -> None:
        """Gives the worker a channel to a loaded model."""
        model, (ours, theirs) = service.model, socket.socketpair()
        known = model.checkpoint
        with theirs, self._sending, suppress(OSError):
            opened = Opened(number=number, folder=str(known.folder), revision=known.revision)
            wire.send(self._control, opened, model.engine.facts)
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        session = self.sessions[service] = WorkerSession(ours, model.scheduler, model.engine, on_joined)
        session.tell_fault()

    def _read(self) -> None:
        try:
            while True:
                for message in FROM_WORKER.receive(self._control):
                    self._act(self, message)
        except OSError:
            pass
        except wire.UnknownMessage as exc:
            log.error("a worker sent %s", exc)

    def close(self) -> None:
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
