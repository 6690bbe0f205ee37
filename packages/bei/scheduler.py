"""The threads that own the engine. All waiting happens here, and every wait has an end.

`engine.streams` batches run at once and one more is prepared: there is one thread more than streams, each takes and
packs a batch on its own, then waits for its turn at the engine. No hand-off, no timer, no polling.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bei import metrics
from bei.batching import Entry, Queue
from bei.engines.base import Batch, Engine
from bei.errors import EngineFailed, Error, Expired, NotReady

log = logging.getLogger("bei")


class Outcome:
    """What became of one entry: what is kept of its row, or the error; times in seconds."""

    __slots__ = ("entry", "inference", "queue", "result")

    def __init__(self, entry: Entry, result: Any, queue: float, inference: float):
        self.entry, self.result, self.queue, self.inference = entry, result, queue, inference


Deliver = Callable[[Sequence[Outcome]], None]
Keep = Callable[[np.ndarray], Any]


class Scheduler:
    """Runs what is submitted, in the order that the queue decides; hands the outcomes of each batch to `deliver`.

    An outcome holds `keep(row)` of its row, float32[D] or float32[tokens, D]: what is dropped there frees the batch.
    """

    def __init__(self, engine: Engine, queue: Queue, deliver: Deliver, keep: Keep = np.asarray):
        self._engine, self._queue, self._deliver, self._keep = engine, queue, deliver, keep
        self._changed = threading.Condition()
        self._turn = threading.Semaphore(engine.streams)
        self._closing = False
        self.last_success = 0.0
        self.failing = False
        names = (f"engine-{i}" for i in range(engine.streams + 1))
        self._threads = [threading.Thread(target=self._loop, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def submit(self, entries: Sequence[Entry]) -> None:
        """Queue one request's entries. Raises Overloaded, or NotReady once closing."""
        now = time.monotonic()
        for entry in entries:
            entry.queued = now
        with self._changed:
            if self._closing:
                raise NotReady("the server is shutting down")
            self._queue.push(entries)
            metrics.queue_size.set(len(self._queue))
            self._changed.notify()

    def close(self, timeout: float = 30) -> None:
        """Finish what is queued, then stop. After `timeout` seconds the rest is answered NotReady."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._abandon(NotReady("the server is shutting down"))

    def _loop(self) -> None:
        try:
            while (entries := self._next()) is not None:
                self._run(entries)
        except BaseException as exc:
            # Never leave a client waiting for a thread that is gone.
            log.exception("engine thread died")
            with self._changed:
                self._closing = self.failing = True
                self._changed.notify_all()
            self._abandon(EngineFailed(f"engine thread died: {exc}"))

    def _next(self) -> list[Entry] | None:
        """The next batch; None when closing and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._queue))
                if not len(self._queue):
                    return None
                taken = self._queue.take(time.monotonic())
                metrics.queue_size.set(len(self._queue))
                if len(self._queue):
                    self._changed.notify()
            if taken.expired:
                self._settle(taken.expired, Expired("the request's deadline passed while it waited"))
            if taken.batch:
                return taken.batch

    def _run(self, entries: list[Entry]) -> None:
        batch = Batch.pack(
            [entry.ids for entry in entries],
            [entry.token_types for entry in entries],
            [entry.prompt_tokens for entry in entries],
            [entry.attended for entry in entries],
            entries[0].rows,
        )
        with self._turn:
            started = time.monotonic()
            try:
                rows = self._engine.run(batch)
            except BaseException as exc:
                log.exception("engine failed on a batch of %d texts", len(entries))
                self.failing = True
                self._settle(entries, EngineFailed(f"engine failed: {type(exc).__name__}"))
                if isinstance(exc, Exception):
                    return
                raise
            seconds = time.monotonic() - started
        with self._changed:
            self.last_success = time.monotonic()
            self.failing = self.failing and self._closing  # a thread that died stays a failure
        metrics.observe_batch(len(batch), len(batch.input_ids), seconds)
        self._deliver(self._outcomes(entries, batch, rows, started, seconds))

    def _outcomes(
        self, entries: list[Entry], batch: Batch, rows: np.ndarray, started: float, seconds: float
    ) -> list[Outcome]:
        """One an entry; a row that is not finite fails its own entry and no other."""
        finite = np.isfinite(rows).all(1)
        parts: Sequence[np.ndarray] = rows
        if batch.rows == "tokens":
            parts = np.split(rows, batch.cu_seqlens[1:-1])
            finite = np.logical_and.reduceat(finite, batch.cu_seqlens[:-1])
        broken = EngineFailed("the model's output is not finite (NaN or infinity)")
        return [
            Outcome(entry, self._keep(part) if whole else broken, started - entry.queued, seconds)
            for entry, part, whole in zip(entries, parts, finite.tolist(), strict=True)
        ]

    def _settle(self, entries: Sequence[Entry], error: Error) -> None:
        self._deliver([Outcome(entry, error, 0.0, 0.0) for entry in entries])

    def _abandon(self, error: Error) -> None:
        with self._changed:
            while len(self._queue):
                taken = self._queue.take(float("-inf"))
                self._settle(taken.batch + taken.expired, error)
