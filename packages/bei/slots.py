"""Slots for batches: the streams of one engine, or the processors that the engines of several models share."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_OVERTAKEN = 0.02  # seconds for which a running thread may go before one that has to wake up


@dataclass(eq=False)
class _Waiting:
    """A batch that waits for a slot, since a time.monotonic()."""

    share: "Share"
    since: float


class Slots:
    """Batches get slots about in the order of their arrival, whatever their model."""

    def __init__(self, capacity: int):
        self.capacity = self._free = capacity
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._shares: list[Share] = []
        self.long = 0  # batches in slots whose requests are not brief

    def share(self, streams: int, cost: int = 1, *, has_brief_slot: bool = False) -> "Share":
        """The share of an engine that runs up to `streams` batches at once, each in `cost` slots. With a brief slot it
        runs one more, brief batch while long ones run, which takes no slot."""
        made = Share(self, streams, min(cost, self.capacity), has_brief_slot)
        with self._changed:
            self._shares.append(made)
        return made

    @property
    def busy(self) -> int:
        """The number of shares with batches that run or wait; at least 1."""
        return max(1, sum(share.batches > 0 for share in self._shares))

    @contextmanager
    def slot(self, share: "Share", *, is_long: bool, may_be_brief: bool) -> Iterator[None]:
        mine = _Waiting(share, time.monotonic())

        def has_brief_slot() -> bool:
            return may_be_brief and self.long > 0 and not share.brief_slot_is_taken

        def has_slot() -> bool:
            first = next((of for of in self._waiting if of.share.has_stream), mine)
            in_turn = first is mine or mine.since < first.since + _OVERTAKEN
            return share.has_stream and self._free >= share.cost and in_turn

        with self._changed:
            share.batches += 1
            self._waiting.append(mine)
            self._changed.wait_for(lambda: has_slot() or has_brief_slot())
            in_brief_slot = not has_slot()
            self._waiting.remove(mine)
            self._count(share, 1, in_brief_slot=in_brief_slot, is_long=is_long)
            if self._waiting and self._free:
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                share.batches -= 1
                self._count(share, -1, in_brief_slot=in_brief_slot, is_long=is_long)
                self._changed.notify_all()

    def _count(self, share: "Share", begun: int, *, in_brief_slot: bool, is_long: bool) -> None:
        """`begun` is 1 for a batch that begins, and -1 for one that has ended."""
        if in_brief_slot:
            share.brief_slot_is_taken = begun > 0
        else:
            self._free -= begun * share.cost
            share.running += begun
            self.long += begun * is_long


class Share:
    """The share of one engine in slots."""

    def __init__(self, slots: Slots, streams: int, cost: int, has_brief_slot: bool):
        self.slots, self.streams, self.cost, self.has_brief_slot = slots, streams, cost, has_brief_slot
        self.running = self.batches = 0  # batches in slots; those that run or wait
        self.brief_slot_is_taken = False

    @property
    def has_stream(self) -> bool:
        return self.running < self.streams
