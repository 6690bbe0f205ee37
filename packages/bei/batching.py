"""What runs next. Pure: no thread, no clock, no device; the caller brings the time.

Start-time fair queueing over tokens (Goyal, Vin and Cheng, 1996). An entry's tag is the virtual time at which its
request arrived plus the tokens of the entries before it in that request; the least tag opens the next batch. Virtual
time is the service that each waiting request has had by right: a batch moves it on by its tokens over the requests that
wait. So a query that arrives behind a bulk of 2,048 texts waits for one batch, not for the bulk; and nothing starves,
for under any flood of new requests virtual time passes every tag. What still fits the budget fills the batch, in order
of tags; what does not keeps its place, and no more than LOOKAHEAD such entries are looked past.

Such fairness is among requests, so a bulk that shares an overloaded engine with a flood of queries would get the part
of one of them. Whatever has waited for PATIENCE seconds is therefore taken in the order of arrival, every other batch;
and all is, every batch, once the queue is to be finished.

A brief request, of BRIEF tokens at most, may also be taken out of turn: by an engine that has room for it beside its
batches (scheduler.py), and then never shares a batch with longer ones. It is paid for in virtual time like any other.
A part of what may wait is kept for such requests, so that a bulk that fills the rest turns no query away.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np

from bei.errors import Overloaded

RowKind = Literal["pooled", "tokens"]
"""The rows of a sequence that an engine returns: one pooled row, or a row for each token."""

LOOKAHEAD = 32
PATIENCE = 5.0  # seconds
BRIEF = 128  # tokens
FOR_BRIEF = 0.25  # of what may wait


def is_brief(tokens: int) -> bool:
    """Whether a request that computes so many tokens, or a batch of them, may overtake longer ones."""
    return tokens <= BRIEF


def _nobody(outcomes: Sequence["Outcome"]) -> None:
    """The receiver of what nobody waits for."""


@dataclass(slots=True, eq=False)
class Request:
    """What the entries of one call share. `receiver` is told what becomes of them. `waiting` of them are in the queue,
    with `tokens` in all; `cost` is what all of them compute; `dropped`: nobody wants it any more."""

    deadline: float = float("inf")
    receiver: "Receiver" = _nobody
    dropped: bool = False
    waiting: int = 0
    tokens: int = 0
    cost: int = 0

    @property
    def is_brief(self) -> bool:
        return is_brief(self.cost)

    def settle(self, outcome: "Outcome") -> None:
        """For those whose receiver hands outcomes on to their requests."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Entry:
    """One encoding that waits: `index` is its place in the request, `queued` the time at which it was admitted, before
    it is pushed; `shared` how many of its first tokens are those of all its request's entries, and computed once in a
    batch."""

    request: Request
    index: int
    ids: Sequence[int] | np.ndarray
    _: KW_ONLY
    token_types: Sequence[int] | np.ndarray | None = None
    prompt_tokens: int = 0
    attended: int | None = None
    row_kind: RowKind = "pooled"
    shared: int = 0
    queued: float = 0.0
    tag: int = 0
    arrival: int = 0
    taken: bool = False

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def cost(self) -> int:
        """Tokens that are its own to compute."""
        return len(self.ids) - self.shared


class Outcome:
    """What became of one entry: what is kept of its row, or the error; times in seconds."""

    __slots__ = ("entry", "inference", "queue", "result")

    def __init__(self, entry: Entry, result: Any, queue: float, inference: float):
        self.entry, self.result, self.queue, self.inference = entry, result, queue, inference


Receiver = Callable[[Sequence[Outcome]], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """The next batch, and what fell out on the way to it: entries past their deadline."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batch) + len(self.expired)


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_tokens` and `batch_size` cut a batch; `tokens`, `size` (entries) and `requests` bound what waits. With
    `brief_apart` no batch has texts of brief requests and of others."""

    batch_tokens: int
    batch_size: int
    tokens: int
    size: int = 1 << 30
    requests: int = 1 << 30
    brief_apart: bool = False


class Queue:
    """An entry longer than a batch runs alone. A request larger than the queue is admitted when nothing else waits.

    `tokens` are those of what waits, and `len` its entries. What was dropped, or taken from elsewhere, stays in the
    heap until it is met there, or until it is the larger part; so in the order of ages.

    `most_tokens` may wait, a part of them brief requests' own; the scheduler lowers it where the limit is more than the
    engine runs in good time.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.most_tokens = limits.tokens
        self.tokens = 0
        self._brief_tokens = 0
        self._heap: list[tuple[int, int, Entry]] = []
        self._ages: deque[Entry] = deque()
        self._brief: deque[Entry] = deque()
        self._old_turn = self._by_age = False
        self._virtual_time = 0
        self._arrivals = 0
        self._requests = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, entries: Iterable[Entry]) -> None:
        """Admit one request's entries, all or none. Raises Overloaded."""
        entries = list(entries)
        request, tag = entries[0].request, self._virtual_time
        tokens, request.cost = sum(entry.tokens for entry in entries), sum(entry.cost for entry in entries)
        if self._size and not self._has_room(len(entries), tokens, is_brief=request.is_brief):
            raise Overloaded
        for entry in entries:
            entry.tag, entry.arrival = tag, self._arrivals
            self._push(entry)
            self._arrivals += 1
            tag += entry.cost
        self._ages.extend(entries)
        request.waiting, request.tokens = len(entries), tokens
        if request.is_brief:
            self._brief.extend(entries)
            self._brief_tokens += tokens
        self._requests += 1
        self._size += len(entries)
        self.tokens += tokens

    def _has_room(self, size: int, tokens: int, *, is_brief: bool) -> bool:
        """For one more request. Whatever waits of others, they take no more from a brief one than they may have."""
        if self._size + size > self.limits.size or self._requests >= self.limits.requests:
            return False
        others, most_of_others = self.tokens - self._brief_tokens, self.most_tokens * (1 - FOR_BRIEF)
        if is_brief:
            return min(others, most_of_others) + self._brief_tokens + tokens <= self.most_tokens
        return others + tokens <= most_of_others and self.tokens + tokens <= self.most_tokens

    def drop(self, request: Request) -> None:
        """Forget what waits of a request that nobody wants any more."""
        request.dropped = True
        self._requests -= request.waiting > 0
        self._size -= request.waiting
        self._forget(request, request.tokens)
        request.waiting = request.tokens = 0
        self._sweep()

    def finish_oldest_first(self) -> None:
        """From now on: where time ends for all that waits, some should be finished, and not each in part."""
        self._by_age = True

    def take(self, now: float) -> Taken:
        """Remove and return the next batch: empty only when the queue is."""
        is_old = bool(self._ages) and self._ages[0].queued + PATIENCE <= now
        self._old_turn = self._by_age or (not self._old_turn and is_old)
        taken = Taken()
        if self._old_turn:
            room = self._fill(taken, self._ages, self._ages.popleft, self._ages.appendleft, now)
        else:
            room = self._fill(taken, self._heap, self._pop, self._push, now)
            if taken.batch:
                self._virtual_time = max(self._virtual_time, taken.batch[0].tag)
        self._served(self.limits.batch_tokens - room)
        self._remove(taken)
        return taken

    def _fill(
        self,
        taken: Taken,
        waiting: Sized,
        pop: Callable[[], Entry],
        put_back: Callable[[Entry], None],
        now: float,
    ) -> int:
        """Fill a batch from what waits, in its order; how many tokens would still fit."""
        room, limits = self.limits.batch_tokens, self.limits
        passed: list[Entry] = []
        while waiting and len(taken.batch) < limits.batch_size and len(passed) < LOOKAHEAD:
            entry = pop()
            if _gone(entry):
                continue
            if entry.request.deadline <= now:
                taken.expired.append(entry)
            elif not taken.batch or (entry.cost <= room and self._go_together(taken.batch[0], entry)):
                taken.batch.append(entry)
                room -= entry.cost
            else:
                passed.append(entry)
        for entry in reversed(passed):
            put_back(entry)
        return room

    def _go_together(self, a: Entry, b: Entry) -> bool:
        return a.row_kind == b.row_kind and (not self.limits.brief_apart or a.request.is_brief == b.request.is_brief)

    def _pop(self) -> Entry:
        return heapq.heappop(self._heap)[-1]

    def _push(self, entry: Entry) -> None:
        heapq.heappush(self._heap, (entry.tag, entry.arrival, entry))

    def take_brief(self, now: float) -> Taken:
        """Remove and return entries of brief requests, oldest first, BRIEF tokens in all; empty where none wait."""
        taken, room = Taken(), BRIEF
        while self.has_brief() and len(taken.batch) < self.limits.batch_size:
            entry = self._brief.popleft()
            if entry.request.deadline <= now:
                taken.expired.append(entry)
            elif entry.cost <= room and (not taken.batch or entry.row_kind == taken.batch[0].row_kind):
                taken.batch.append(entry)
                room -= entry.cost
            else:
                self._brief.appendleft(entry)
                break
        self._served(BRIEF - room)
        self._remove(taken)
        return taken

    def has_brief(self) -> bool:
        """Whether an entry of a brief request waits."""
        while self._brief and _gone(self._brief[0]):
            self._brief.popleft()
        return bool(self._brief)

    def _served(self, tokens: int) -> None:
        self._virtual_time += -(-tokens // max(1, self._requests))

    def _remove(self, taken: Taken) -> None:
        for entry in (*taken.batch, *taken.expired):
            entry.taken = True
            entry.request.waiting -= 1
            entry.request.tokens -= entry.tokens
            self._requests -= entry.request.waiting == 0
            self._size -= 1
            self._forget(entry.request, entry.tokens)
        self._sweep()

    def _forget(self, request: Request, tokens: int) -> None:
        self.tokens -= tokens
        if request.is_brief:
            self._brief_tokens -= tokens

    def _sweep(self) -> None:
        self.has_brief()
        while self._ages and _gone(self._ages[0]):
            self._ages.popleft()
        most = 2 * self._size + LOOKAHEAD
        if len(self._ages) > most:
            self._ages = deque(entry for entry in self._ages if not _gone(entry))
        if len(self._heap) > most:
            self._heap = [item for item in self._heap if not _gone(item[-1])]
            heapq.heapify(self._heap)


def _gone(entry: Entry) -> bool:
    return entry.taken or entry.request.dropped
