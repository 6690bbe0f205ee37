"""The threads that own the engine. All waiting happens here, and every wait has an end.

As many batches run at once as the engine has streams, and one more is prepared: there is one thread more than streams.
Each thread takes and packs a batch, then waits for a free stream. There is no hand-off, no timer and no polling. If the
engine has a slot for brief batches, one more thread runs brief requests that would otherwise wait for a running batch.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bei import logs
from bei.batching import Entry, Outcome, Queue, Receiver, Request, Taken, is_brief
from bei.engines.base import Batch, Engine
from bei.errors import ENDING, Ended, EngineDied, EngineFailed, Error, Expired, NotReady, Overloaded, one_line
from bei.metrics import Metrics, ModelMetrics
from bei.slots import Share, Slots

log = logging.getLogger("bei")

LAST_BATCH = 30.0  # seconds that it has at the end
_SMOOTHING = 0.1  # the weight of a batch in means
_FIRST_BATCH = 0.25  # seconds that a full batch is assumed to take before one has run


def deliver(outcomes: Sequence[Outcome]) -> None:
    """Calls the receiver of each request, once per receiver."""
    by_receiver: dict[Receiver, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_receiver[outcome.entry.request.receiver].append(outcome)
    for receive, of_receiver in by_receiver.items():
        receive(of_receiver)


Keep = Callable[[np.ndarray], Any]


class Scheduler:
    """Runs submitted entries in the queue's order, and passes the outcomes of each batch to `hand_out`.

    An outcome contains `keep(row)` of its row, float32[D] or float32[tokens, D]. Keeping no reference to the row frees
    the batch.
    """

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        hand_out: Receiver = deliver,
        keep: Keep = np.asarray,
        max_seconds: float = float("inf"),
        metrics: ModelMetrics | None = None,
        share: Share | None = None,
    ):
        """`max_seconds` limits admission to the work that the engine does in that time; a request that is alone is
        always admitted. `share` is that of the engine in the slots of a device that other engines use, too. Without
        `metrics` it has metrics of its own."""
        self._metrics = metrics or Metrics().of_model("")
        self._engine, self._queue, self._hand_out, self._keep = engine, queue, hand_out, keep
        self._max_seconds = max_seconds
        lock = threading.Lock()
        self._changed, self._brief = (threading.Condition(lock) for _ in range(2))
        self._taken = 0  # batches taken in turn that have not ended
        self._closing = False
        self.last_success = 0.0
        self.failing = False
        self._is_instant = engine.facts.is_instant
        self._streams, has_brief_slot = engine.facts.streams, engine.facts.has_brief_slot
        self._share = share or Slots(self._streams).share(self._streams, has_brief_slot=has_brief_slot)
        self._slots = self._share.slots
        self._speed = self._streams * queue.limits.batch_tokens / _FIRST_BATCH  # tokens per second, over all streams
        self._has_run = False
        self._part = 1 / self._share.pool.busy  # of the device's time, which engines that are busy share
        self._bound_queue()
        steps = [self._run_next] * (self._streams + 1) + [self._run_brief] * has_brief_slot
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=f"engine-{i}", daemon=True)
            for i, step in enumerate(steps)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, entries: Sequence[Entry]) -> None:
        """Queues the entries of one request, or runs them here if that takes no time. Raises Overloaded, or Ended once
        closing."""
        now = time.monotonic()
        for entry in entries:
            entry.queued = now
        with self._changed:
            if self._closing:
                raise Ended(ENDING)
            try:
                self._queue.push(entries)
            except Overloaded:
                raise Overloaded(retry_after=self.drains_in()) from None
            is_alone = not self._taken and len(self._queue) == len(entries)
            taken = self._take() if self._is_instant and is_alone and entries[0].request.is_brief else None
            self._notify()
        if taken is not None:
            self._finish_taken(taken)

    def drop(self, request: Request) -> None:
        """Runs no more entries of a request."""
        if not request.waiting:
            return
        with self._changed:
            self._queue.drop(request)
            self._metrics.observe_queue(self._queue.texts, self._queue.tokens)

    def drain(self) -> None:
        """Finishes the waiting entries in the order of their arrival."""
        with self._changed:
            self._queue.finish_oldest_first()

    def drains_in(self) -> float:
        """Seconds in which the queue will have run, up to what is in the background."""
        return self._queue.tokens / (self._speed * self._part)

    def close(self, timeout: float = LAST_BATCH) -> None:
        """Finishes the queued entries, then stops. After `timeout` seconds the rest is answered by Ended."""
        with self._changed:
            self._stop()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._abandon(Ended(ENDING))

    def _stop(self) -> None:
        self._closing = True
        self._changed.notify_all()
        self._brief.notify_all()

    def _notify(self) -> None:
        self._metrics.observe_queue(self._queue.texts, self._queue.tokens)
        if len(self._queue):
            self._changed.notify()
        if self._is_held_up():
            self._brief.notify()

    def _is_held_up(self) -> bool:
        """Whether a brief request waits for the texts of a long one. Behind other brief requests it is better off in a
        batch with them."""
        return self._taken >= self._streams and self._share.pool.long > 0 and self._queue.has_brief()

    def _loop(self, step: Callable[[], bool]) -> None:
        logs.about_model(self._metrics.name)
        try:
            while step():
                pass
        except BaseException as exc:
            # A client must never wait for a dead thread.
            log.exception("engine thread died")
            self._die()
            self._abandon(EngineFailed(f"engine thread died: {one_line(exc)}"))

    def _die(self) -> None:
        with self._changed:
            self.failing = True
            self._stop()

    def _run_next(self) -> bool:
        """Takes the next batch, and runs it when a stream is free; false when closing and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._queue))
            if not len(self._queue):
                return False
            taken = self._take()
            self._notify()
        self._finish_taken(taken)
        return True

    def _take(self) -> Taken:
        """The next batch, which `_finish_taken` ends."""
        self._taken += 1
        return self._queue.take(time.monotonic())

    def _finish_taken(self, taken: Taken) -> None:
        try:
            self._finish(taken)
        finally:
            with self._changed:
                self._taken -= 1

    def _run_brief(self) -> bool:
        """Runs brief requests beside the batches of all streams; false when closing."""
        with self._brief:
            self._brief.wait_for(lambda: self._closing or self._is_held_up())
            if self._closing:
                return False
            taken = self._queue.take_brief(time.monotonic())
            self._notify()
        self._finish(taken)
        return True

    def _finish(self, taken: Taken) -> None:
        if taken.expired:
            self._settle(taken.expired, Expired("the request's deadline passed while it waited"))
        if taken.batch:
            batch, is_long = _pack(taken.batch), not taken.batch[0].request.is_brief
            may_be_brief = not is_long and self._share.has_brief_slot and is_brief(len(batch.input_ids))
            with self._slots.slot(self._share, is_long=is_long, may_be_brief=may_be_brief):
                self._run(taken.batch, batch)

    def _run(self, entries: list[Entry], batch: Batch) -> None:
        started = time.monotonic()
        try:
            rows = self._engine.run(batch)
        except Exception as exc:
            self._failed(entries, exc)
            return
        except BaseException as exc:
            self._die()
            self._failed(entries, exc)
            raise
        seconds = time.monotonic() - started
        with self._changed:
            self.last_success = time.monotonic()
            self.failing = self.failing and self._closing  # after the death of a thread it stays true
        self._metrics.observe_batch(len(batch), len(batch.input_ids), seconds)
        self._metrics.observe_packing(
            len(batch), len(batch.input_ids), int(batch.lengths.max()), self._queue.limits.batch_tokens
        )
        self._hand_out(self._outcomes(entries, batch, rows, started, seconds))
        with self._changed:
            self._learn(len(batch.input_ids), time.monotonic() - started)

    def _learn(self, tokens: int, seconds: float) -> None:
        """Notes the speed of the engine and its part of the device's time, and bounds the queue by them. Only batches
        of at least half the full size count, because small ones are slow. `seconds` is the whole time for which a batch
        had its slot."""
        if 2 * tokens < min(self._queue.limits.batch_tokens, self._queue.most_tokens):
            return
        speed = tokens / max(seconds, 1e-6) * self._streams
        self._speed += (speed - self._speed) * (_SMOOTHING if self._has_run else 1.0)
        self._part += (1 / self._share.pool.busy - self._part) * _SMOOTHING
        self._has_run = True
        self._bound_queue()

    def _bound_queue(self) -> None:
        most = self._speed * self._part * self._max_seconds
        self._queue.most_tokens = int(min(self._queue.limits.tokens, most))

    def _failed(self, entries: list[Entry], fault: BaseException) -> None:
        """Fails a batch of one request. Runs the halves of another, so that only the faulty request fails. A batch that
        ended the engine's process is not tried again, and an engine that ends gets no more."""
        requests = list(dict.fromkeys(entry.request for entry in entries))
        said, trace = (fault.message, None) if isinstance(fault, Error) else (type(fault).__name__, fault)
        if not isinstance(fault, Ended):  # whoever ends it says so
            log.error("engine failed on %d texts of %d requests: %s", len(entries), len(requests), said, exc_info=trace)
        self.failing = True
        if len(requests) == 1 or isinstance(fault, EngineDied | NotReady) or not isinstance(fault, Exception):
            self._settle(entries, _error_of(fault))
            return
        first = set(requests[: len(requests) // 2])
        for half in ([e for e in entries if e.request in first], [e for e in entries if e.request not in first]):
            self._run(half, _pack(half))

    def _outcomes(
        self, entries: list[Entry], batch: Batch, rows: np.ndarray, started: float, seconds: float
    ) -> list[Outcome]:
        """One outcome per entry; a row that is not finite fails only its own entry."""
        finite = np.isfinite(rows).all(1)
        parts: Iterable[np.ndarray] = rows
        if batch.row_kind == "tokens":
            first = batch.first_rows[1:]
            parts = np.split(rows, first)
            finite = np.array([part.all() for part in np.split(finite, first)])
        broken = EngineFailed("the model's output is not finite (NaN or infinity)")
        return [
            Outcome(entry, self._keep(part) if whole else broken, started - entry.queued, seconds)
            for entry, part, whole in zip(entries, parts, finite.tolist(), strict=True)
        ]

    def _settle(self, entries: Sequence[Entry], error: Error) -> None:
        self._hand_out([Outcome(entry, error, 0.0, 0.0) for entry in entries])

    def _abandon(self, error: Error) -> None:
        abandoned: set[Request] = set()
        with self._changed:
            while len(self._queue):
                taken = self._queue.take(float("-inf"))
                abandoned |= {entry.request for entry in taken.batch}
                self._settle(taken.batch, error)
        for _ in abandoned:
            self._metrics.server.observe_cancelled("drain")


def _pack(entries: list[Entry]) -> Batch:
    return Batch.pack(
        [entry.ids for entry in entries],
        token_types=[entry.token_types for entry in entries],
        prompt_tokens=[entry.prompt_tokens for entry in entries],
        attended=[entry.attended for entry in entries],
        row_kind=entries[0].row_kind,
        marked=[entry.marked for entry in entries],
    )


def _error_of(fault: BaseException) -> Error:
    """The error of a request whose batch met a fault."""
    match fault:
        case NotReady():
            return type(fault)(fault.message)
        case EngineFailed():
            return EngineFailed(fault.message)
        case _:
            return EngineFailed(f"engine failed: {type(fault).__name__}")
