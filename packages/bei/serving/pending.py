"""A request between the event loop, which waits for it, and the threads that answer it."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bei.batching import Outcome, Request
from bei.errors import Error, Expired


class Pending(Request):
    """A waiting request with one future, which its last outcome or its first error settles. It is waited for once.
    `queue` and `inference` are seconds, summed over its entries.

    It keeps no reference to its entries, nor to an error, whose traceback would refer to them: either would form a
    cycle and keep all rows in memory until the garbage collector runs.
    """

    __slots__ = ("future", "inference", "missing", "queue", "rows")

    def __init__(self, entries: int, deadline: float, *, is_background: bool = False):
        loop = asyncio.get_running_loop()
        super().__init__(deadline, _Loop(loop), is_background)
        self.future: asyncio.Future[list[Any]] | None = loop.create_future()
        self.rows: list[Any] = [None] * entries
        self.missing = entries
        self.queue = self.inference = 0.0

    async def wait(self) -> list[Any]:
        """The kept value of each row. Raises Expired, or the error of an outcome."""
        timer, future = None, self.future
        if future is None:
            raise RuntimeError("a request is waited for once")
        if self.deadline < float("inf"):
            timer = future.get_loop().call_later(self.deadline - time.monotonic(), self._expire)
        try:
            return await future
        finally:
            self.future = None
            del future  # an error in it would refer to this frame
            if timer is not None:
                timer.cancel()

    def _expire(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(Expired("the request's deadline passed"))

    def settle(self, outcome: Outcome) -> None:
        if self.future is None or self.future.done():
            return
        if isinstance(outcome.result, Error):
            self.future.set_exception(outcome.result)
            return
        self.rows[outcome.entry.index] = outcome.result
        self.queue += outcome.queue
        self.inference += outcome.inference
        self.missing -= 1
        if not self.missing:
            self.future.set_result(self.rows)


@dataclass(frozen=True, slots=True)
class _Loop:
    """A receiver of outcomes, called by an engine's thread; it wakes the event loop once per batch."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self.loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        outcome.entry.request.settle(outcome)
