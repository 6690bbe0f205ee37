"""A scheduler in another process: HTTP workers read texts, and one process queues and runs them. Admission and fairness
therefore hold for all workers together.

A worker's `RemoteScheduler` collects the requests of one event-loop iteration and sends them as one message. Its
`WorkerSession`, in the scheduler's process, submits them and sends the outcomes back, one message a batch.
"""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import numpy as np

from bei import wire
from bei.batching import Entry, Outcome, Request, RowKind
from bei.engines.base import Engine, EngineFacts
from bei.errors import EngineDied, EngineFailed, Error, Expired, NotReady, Overloaded
from bei.scheduler import Scheduler, deliver
from bei.tasks.sparse import Terms

_ERRORS = {kind.__name__: kind for kind in (EngineDied, EngineFailed, Expired, NotReady, Overloaded)}


@dataclass
class RemoteEngine:
    """What a worker knows of the engine."""

    facts: EngineFacts
    fault: str | None = None


class RemoteScheduler:
    """As Scheduler, for one worker; `channel` leads to its WorkerSession."""

    def __init__(self, channel: socket.socket, engine: RemoteEngine, on_loss: Callable[[], None]):
        """`on_loss` is called when the channel is lost, but not when it is closed here."""
        self._channel, self._engine, self._on_loss = channel, engine, on_loss
        self._closing = False
        self._numbers = count()
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Entry]] = {}
        self._number_of: dict[Request, int] = {}
        self._outgoing: list[list[Any]] = []
        self._arrays: list[np.ndarray] = []
        self._sends_in: asyncio.AbstractEventLoop | None = None
        self.last_success = 0.0
        self.failing = False
        self._drains_in = 1.0
        self._open = threading.Event()
        threading.Thread(target=self._listen, name="scheduler", daemon=True).start()

    def submit(self, entries: Sequence[Entry]) -> None:
        """A refusal comes as the outcome of the first entry."""
        first, number = entries[0], next(self._numbers)
        request = first.request
        each = [(entry.tokens, entry.prompt_tokens, entry.attended) for entry in entries]
        arrays = [np.concatenate([entry.ids for entry in entries])]
        if any(entry.token_types is not None for entry in entries):
            arrays.append(np.concatenate([_types(entry) for entry in entries]))
        with self._lock:
            self._waiting[number], self._number_of[request] = list(entries), number
            request.waiting = len(entries)
            self._add(["submit", number, request.deadline, first.row_kind, first.shared, each, len(arrays)], arrays)

    def drop(self, request: Request) -> None:
        with self._lock:
            request.dropped = True
            number = self._number_of.pop(request, -1)
            if self._waiting.pop(number, None) is not None and request.waiting:
                self._add(["drop", number])

    def _add(self, message: list[Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """With what else this turn of the loop asks: a message costs more than what it says."""
        self._outgoing.append(message)
        self._arrays += arrays
        loop = asyncio.get_running_loop()
        if self._sends_in is not loop:
            self._sends_in = loop
            loop.call_soon(self._send)

    def _send(self) -> None:
        with self._lock:
            outgoing, arrays = self._outgoing, self._arrays
            self._outgoing, self._arrays, self._sends_in = [], [], None
            try:
                wire.send(self._channel, outgoing, arrays)
            except Exception as exc:
                self._disconnect()  # half of it may have gone; who listens is told
                if not isinstance(exc, OSError):
                    raise

    def drain(self) -> None:
        """The process that has the queue stops with this one, and tells it."""

    def drains_in(self) -> float:
        """As it was when the last request was refused."""
        return self._drains_in

    def wait_until_open(self) -> None:
        """Say that this worker could answer, and wait for the word to."""
        with self._lock:
            wire.send(self._channel, [["joined"]])
        self._open.wait()

    def close(self) -> None:
        """What is queued was waited for by those who asked."""
        self._closing = True
        self._disconnect()

    def _disconnect(self) -> None:
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        try:
            while True:
                message, arrays = wire.receive(self._channel)
                if message[0] == "fault":
                    self._engine.fault = message[1]
                elif message[0] == "open":
                    self._open.set()
                else:
                    deliver(self._outcomes(message[1], arrays))
        except OSError:
            self._channel.close()
            if not self._closing:
                self._on_loss()

    def _outcomes(self, told: list[Any], arrays: list[np.ndarray]) -> list[Outcome]:
        found, left = [], iter(arrays)
        for number, index, waited, ran, error, parts in told:
            result = self._result([next(left) for _ in range(parts)]) if error is None else self._error(*error)
            entries = self._waiting.get(number)
            if entries is None:  # dropped meanwhile
                continue
            entry = entries[index]
            entry.request.waiting -= 1
            found.append(Outcome(entry, result, waited, ran))
        return found

    def _error(self, kind: str, message: str, retry_after: float) -> Error:
        self.failing = kind in ("EngineDied", "EngineFailed")
        if kind == "Overloaded":
            self._drains_in = retry_after
            return Overloaded(message, retry_after=retry_after)
        return _ERRORS[kind](message)

    def _result(self, parts: list[np.ndarray]) -> Any:
        self.last_success, self.failing = time.monotonic(), False
        return parts[0] if len(parts) == 1 else Terms(*parts)


class _WorkerRequest(Request):
    """A worker's request: its number there, and how many of its entries have not been answered."""

    __slots__ = ("missing", "number")

    def __init__(self, number: int, entries: int, deadline: float, receiver: "WorkerSession"):
        super().__init__(deadline, receiver)
        self.number, self.missing = number, entries


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
        self._requests: dict[int, _WorkerRequest] = {}
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[tuple[list[Any], list[np.ndarray]] | None] = queue.SimpleQueue()
        for run in (self._read, self._write):
            threading.Thread(target=run, name="session", daemon=True).start()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        """What became of entries goes to the worker."""
        told: list[Any] = []
        arrays: list[np.ndarray] = []
        for outcome in outcomes:
            request, result = (
                cast(_WorkerRequest, outcome.entry.request),
                outcome.result,
            )  # only its own
            with self._lock:  # several batches may end at once
                request.missing -= 1
                if not request.missing:
                    self._requests.pop(request.number, None)
            error: list[Any] | None = None
            parts: tuple[np.ndarray, ...] = ()
            if isinstance(result, Error):
                error = [type(result).__name__, result.message, getattr(result, "retry_after", 0.0)]
            else:
                parts = (result.indices, result.values) if isinstance(result, Terms) else (result,)
            told.append([request.number, outcome.entry.index, outcome.queue, outcome.inference, error, len(parts)])
            arrays += parts
        self._outbox.put((["outcomes", told], arrays))

    def tell_fault(self) -> None:
        """Why the engine cannot run, or that it can."""
        self._outbox.put((["fault", self._engine.fault], []))

    def open(self) -> None:
        self._outbox.put((["open"], []))

    def _read(self) -> None:
        try:
            while True:
                message, arrays = wire.receive(self._channel)
                left = iter(arrays)
                for kind, *arguments in message:
                    self._take(kind, arguments, left)
        except OSError:
            pass
        finally:
            for request in list(self._requests.values()):
                self._scheduler.drop(request)
            self._outbox.put(None)

    def _take(self, kind: str, arguments: list[Any], arrays: Iterator[np.ndarray]) -> None:
        if kind == "submit":
            *fields, parts = arguments
            # Copies, else one request would hold the memory of all that came with it.
            self._submit(*fields, *[next(arrays).copy() for _ in range(parts)])
        elif kind == "joined":
            self._on_joined(self)
        elif request := self._requests.pop(arguments[0], None):
            self._scheduler.drop(request)

    def _submit(
        self,
        number: int,
        deadline: float,
        row_kind: RowKind,
        shared: int,
        each: list[tuple[int, int, int | None]],
        ids: np.ndarray,
        types: np.ndarray | None = None,
    ) -> None:
        request = self._requests[number] = _WorkerRequest(number, len(each), deadline, self)
        entries, start = [], 0
        for i, (tokens, prompt, attended) in enumerate(each):
            span = slice(start, start + tokens)
            own_types = None if types is None else types[span]
            entries.append(Entry(request, i, ids[span], own_types, prompt, attended, row_kind, shared))
            start += tokens
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


def _types(entry: Entry) -> np.ndarray:
    return np.zeros(entry.tokens, np.int32) if entry.token_types is None else np.asarray(entry.token_types)
