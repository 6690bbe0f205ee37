"""Slots for batches: the streams of one engine, or the processors that the engines of several models share."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_OVERTAKEN = 0.02  # seconds for which a running thread may go before one that has to wake up


@dataclass(eq=False)
class _Waiting:
    """A batch that waits for a slot, since a time.monotonic()."""

    share: "Share"
    since: float


class Slots:
    """Batches get slots about in the order of their arrival, whatever their model. Running batches may have as
    many helper threads as there are free slots; a batch does not wait for these. Shares that have no processor in
    common, not even through others, do not wait for each other."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._shares: list[Share] = []

    def share(
        self,
        streams: int,
        cost: int = 1,
        *,
        has_brief_slot: bool = False,
        processors: frozenset[int] = frozenset(),
        allow: Callable[[int], None] = lambda threads: None,
    ) -> "Share":
        """The share of an engine that runs up to `streams` batches at once, each in `cost` slots, on these processors,
        or on any. With a brief slot it runs one more, brief batch while long ones run, which takes no slot. `allow` is
        called with the number of threads that the engine may run, whenever that may have changed and a batch runs."""
        made = Share(self, streams, cost, has_brief_slot, processors, allow)
        with self._changed:
            self._shares.append(made)
            self._divide()
        return made

    def leave(self, share: "Share") -> None:
        """Forgets the share of an engine that has ended."""
        with self._changed:
            self._shares.remove(share)
            self._divide()
            self._changed.notify_all()

    def _divide(self) -> None:
        """Shares that have a processor in common, directly or through others, are in one pool."""
        groups: list[list[Share]] = []
        for share in self._shares:
            common = [group for group in groups if any(share.meets(other) for other in group)]
            groups = [group for group in groups if group not in common]
            groups.append([share, *(other for group in common for other in group)])
        for group in groups:
            pool = _Pool(group, self.capacity)
            for share in group:
                share.pool = pool

    @contextmanager
    def slot(self, share: "Share", *, is_long: bool, may_be_brief: bool) -> Iterator[None]:
        mine = _Waiting(share, time.monotonic())

        def has_brief_slot() -> bool:
            return may_be_brief and share.pool.long > 0 and not share.brief_slot_is_taken

        def has_slot() -> bool:
            waiting = (of for of in self._waiting if of.share.pool is share.pool and of.share.has_stream)
            first = next(waiting, mine)
            in_turn = first is mine or mine.since < first.since + _OVERTAKEN
            return share.has_stream and share.pool.has_room(share.cost) and in_turn

        with self._changed:
            share.batches += 1
            self._waiting.append(mine)
            self._changed.wait_for(lambda: has_slot() or has_brief_slot())
            in_brief_slot = not has_slot()
            self._waiting.remove(mine)
            share.count(1, in_brief_slot=in_brief_slot, is_long=is_long)
            share.pool.lend()
            if self._waiting and share.pool.has_room(1):
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                share.batches -= 1
                share.count(-1, in_brief_slot=in_brief_slot, is_long=is_long)
                share.pool.lend()
                self._changed.notify_all()


class _Pool:
    """The slots of shares with common processors: as many as these, or `capacity` where one of them takes any."""

    def __init__(self, shares: Sequence["Share"], capacity: int):
        self._shares = shares
        named = len(frozenset[int]().union(*(share.processors for share in shares)))
        takes_any = not all(share.processors for share in shares)
        self._capacity = max(named, capacity) if takes_any else named

    def has_room(self, cost: int) -> bool:
        return sum(map(self._taken, self._shares)) + min(cost, self._capacity) <= self._capacity

    def lend(self) -> None:
        """Divides the processors that no batch has among the engines that run batches."""
        batches = {share: self._taken(share) + share.brief_slot_is_taken for share in self._shares}
        running = [share for share, own in batches.items() if own]
        idle = max(0, self._capacity - sum(batches.values()))
        for place, share in enumerate(running):
            share.allow(batches[share] + (idle + place) // len(running))

    def _taken(self, share: "Share") -> int:
        return share.running * min(share.cost, self._capacity)

    @property
    def busy(self) -> int:
        """The number of shares with batches that run or wait; at least 1."""
        return max(1, sum(share.batches > 0 for share in self._shares))

    @property
    def long(self) -> int:
        """The number of batches in slots whose requests are not brief."""
        return sum(share.long for share in self._shares)


class Share:
    """The share of one engine in slots."""

    pool: _Pool

    def __init__(
        self,
        slots: Slots,
        streams: int,
        cost: int,
        has_brief_slot: bool,
        processors: frozenset[int],
        allow: Callable[[int], None],
    ):
        self.slots, self.streams, self.cost, self.has_brief_slot = slots, streams, cost, has_brief_slot
        self.processors, self.allow = processors, allow
        self.running = self.batches = self.long = 0  # batches in slots; those that run or wait; in slots, not brief
        self.brief_slot_is_taken = False

    @property
    def has_stream(self) -> bool:
        return self.running < self.streams

    def meets(self, other: "Share") -> bool:
        """Whether both may run on the same processor."""
        return not self.processors or not other.processors or bool(self.processors & other.processors)

    def count(self, begun: int, *, in_brief_slot: bool, is_long: bool) -> None:
        """`begun` is 1 for a batch that begins, and -1 for one that has ended."""
        if in_brief_slot:
            self.brief_slot_is_taken = begun > 0
        else:
            self.running += begun
            self.long += begun * is_long
