"""A scheduler in another process: HTTP workers read texts, and one process queues and runs them. Admission and fairness
therefore hold for all workers together.

A worker's `RemoteScheduler` collects the requests of one event-loop iteration and sends them as one message. Its
`WorkerSession`, in the scheduler's process, submits them and sends the outcomes back, one message per batch.
"""

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import cast

from bei import wire
from bei.batching import Entry, Outcome, Request
from bei.engines.base import Engine, EngineFacts
from bei.errors import ENDING, Ended, EngineFailed, Error, NotReady, Overloaded
from bei.messages import FROM_WORKER, TO_WORKER, Drop, Fault, Joined, Opened, Settled, Submit
from bei.scheduler import Scheduler, deliver

log = logging.getLogger("bei")


@dataclass
class RemoteEngine:
    """The facts of the engine that a worker knows."""

    facts: EngineFacts
    fault: str | None = None


class RemoteScheduler:
    """The scheduler for one worker; `channel` leads to its WorkerSession."""

    def __init__(self, channel: socket.socket, engine: RemoteEngine, on_loss: Callable[[], None]):
        """`on_loss` is called when the channel is lost, but not when it is closed here."""
        self._channel, self._engine, self._on_loss = channel, engine, on_loss
        self._closing = False
        self._numbers = count()
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Entry]] = {}
        self._number_of: dict[Request, int] = {}
        self._outgoing: list[Submit | Drop] = []
        self._sends_in: asyncio.AbstractEventLoop | None = None
        self.last_success = 0.0
        self.failing = False
        self._drains_in = 1.0
        self._open = threading.Event()
        threading.Thread(target=self._listen, name="scheduler", daemon=True).start()

    def submit(self, entries: Sequence[Entry]) -> None:
        """A refusal arrives as the outcome of the first entry."""
        number, request = next(self._numbers), entries[0].request
        message = Submit.of(number, entries)
        with self._lock:
            self._waiting[number], self._number_of[request] = list(entries), number
            request.waiting = len(entries)
            self._add(message)

    def drop(self, request: Request) -> None:
        with self._lock:
            request.dropped = True
            number = self._number_of.pop(request, -1)
            if self._waiting.pop(number, None) is not None and request.waiting:
                self._add(Drop(number))

    def _add(self, message: Submit | Drop) -> None:
        """Send it together with the others of this iteration of the event loop: sending costs more than a message."""
        self._outgoing.append(message)
        loop = asyncio.get_running_loop()
        if self._sends_in is not loop:
            self._sends_in = loop
            loop.call_soon(self._send)

    def _send(self) -> None:
        with self._lock:
            outgoing = self._outgoing
            self._outgoing, self._sends_in = [], None
            try:
                wire.send(self._channel, *outgoing)
            except Exception as exc:
                self._disconnect()  # a part may have been sent, so the session is told
                if not isinstance(exc, OSError):
                    raise

    def drain(self) -> None:
        """Nothing to do: the process with the queue stops together with this one, and tells it."""

    def drains_in(self) -> float:
        """The seconds of the last refusal."""
        return self._drains_in

    def wait_until_open(self) -> None:
        """Reports that this worker is ready, and waits until it may answer."""
        with self._lock:
            wire.send(self._channel, Joined())
        self._open.wait()

    def close(self, timeout: float = 0) -> None:
        """Requests that still wait are answered by Ended, at once."""
        self._closing = True
        self._disconnect()
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()
        deliver([Outcome(entries[0], Ended(ENDING), 0.0, 0.0) for entries in waiting])

    def _disconnect(self) -> None:
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        try:
            while True:
                deliver(self._outcomes(TO_WORKER.receive(self._channel)))
        except (OSError, wire.UnknownMessage) as exc:
            if isinstance(exc, wire.UnknownMessage):
                log.error("the server sent %s", exc)
            self._channel.close()
            if not self._closing:
                self._on_loss()

    def _outcomes(self, messages: Sequence[Settled | Fault | Opened]) -> list[Outcome]:
        found = []
        for message in messages:
            if isinstance(message, Fault):
                self._engine.fault = message.message
            elif isinstance(message, Opened):
                self._open.set()
            elif outcome := self._outcome(message):
                found.append(outcome)
        return found

    def _outcome(self, message: Settled) -> Outcome | None:
        result = message.result
        if isinstance(result, Error):
            self.failing = isinstance(result, EngineFailed)
            self._drains_in = message.retry_after if isinstance(result, Overloaded) else self._drains_in
        else:
            self.last_success, self.failing = time.monotonic(), False
        entries = self._waiting.get(message.number)
        if entries is None:  # it was dropped meanwhile
            return None
        entry = entries[message.index]
        entry.request.waiting -= 1
        return Outcome(entry, result, message.queue, message.inference)


class _WorkerRequest(Request):
    """A worker's request: its number in the worker, and the count of unanswered entries."""

    __slots__ = ("missing", "number")

    def __init__(self, submitted: Submit, receiver: "WorkerSession"):
        super().__init__(submitted.deadline, receiver, submitted.is_background)
        self.number, self.missing = submitted.number, len(submitted.lengths)


class WorkerSession:
    """Server side of one worker's connection: submits its requests and sends outcomes back. When `channel` closes, its
    pending requests are dropped. `on_joined` is called when the worker is ready and waits for `open`."""

    def __init__(
        self,
        channel: socket.socket,
        scheduler: Scheduler | RemoteScheduler,
        engine: Engine | RemoteEngine,
        on_joined: Callable[["WorkerSession"], None],
    ):
        self._channel, self._scheduler, self._engine, self._on_joined = channel, scheduler, engine, on_joined
        self.has_joined = False
        self.ended = threading.Event()
        """Set when the channel is closed: the worker is gone, or does without the model."""
        self._requests: dict[int, _WorkerRequest] = {}
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[tuple[Settled | Fault | Opened, ...] | None] = queue.SimpleQueue()
        for run in (self._read, self._write):
            threading.Thread(target=run, name="session", daemon=True).start()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        """Sends the outcomes of entries to the worker."""
        settled = []
        for outcome in outcomes:
            request = cast(_WorkerRequest, outcome.entry.request)  # the session submits only these
            with self._lock:  # several batches may end at once
                request.missing -= 1
                if not request.missing:
                    self._requests.pop(request.number, None)
            settled.append(Settled.of(request.number, outcome))
        self._outbox.put(tuple(settled))

    def tell_fault(self) -> None:
        """Tells why the engine cannot run, or that it can."""
        self._outbox.put((Fault(self._engine.fault),))

    def open(self) -> None:
        self._outbox.put((Opened(),))

    def _read(self) -> None:
        try:
            while True:
                for message in FROM_WORKER.receive(self._channel):
                    self._take(message)
        except OSError:
            pass
        except wire.UnknownMessage as exc:
            log.error("a worker sent %s", exc)
        finally:
            for request in list(self._requests.values()):
                self._scheduler.drop(request)
            self._outbox.put(None)
            self.ended.set()

    def _take(self, message: Submit | Drop | Joined) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Joined):
            self.has_joined = True
            self._on_joined(self)
        elif request := self._requests.pop(message.number, None):
            self._scheduler.drop(request)

    def _submit(self, message: Submit) -> None:
        request = _WorkerRequest(message, self)
        self._requests[message.number] = request
        entries = message.entries(request)
        try:
            if self._engine.fault is not None:
                raise NotReady(self._engine.fault)
            self._scheduler.submit(entries)
        except Error as refusal:
            self([Outcome(entries[0], refusal, 0.0, 0.0)])

    def _write(self) -> None:
        try:
            while (made := self._outbox.get()) is not None:
                wire.send(self._channel, *made)
        except OSError:
            pass
        self._channel.close()
