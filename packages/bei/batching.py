"""The queue of entries, as a value: it has no thread, clock or device; the caller passes the time.

Start-time fair queueing over tokens (Goyal, Vin and Cheng, 1996). The tag of an entry is the virtual time at which its
request arrived plus the tokens of the request's earlier entries. The entry with the least tag opens the next batch.
Virtual time is the service that each waiting request is due: a batch advances it by the batch's tokens divided by the
number of waiting requests. So a query behind a bulk of 2,048 texts waits for one batch, not for the bulk. Nothing
starves, because under any flood of new requests virtual time passes every tag. Further entries fill the batch in the
order of tags. An entry that does not fit keeps its place; at most LOOKAHEAD such entries are passed over.

This fairness is among requests, so a bulk beside a flood of queries would get the share of one query. Therefore every
other batch takes, in the order of arrival, the entries that have waited for PATIENCE seconds. Once the queue is to be
finished, every batch is taken in the order of arrival.

A brief request has at most BRIEF tokens. An engine that has room for it beside its batches may take it out of turn
(scheduler.py); then it shares no batch with longer requests. It advances virtual time like any other. A part of the
queue is reserved for brief requests, so that a bulk that fills the rest turns no query away.

A background request runs only when no other one waits, in the order of arrival. It takes no room from others, and
counts for nothing in their order.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np

from bei.errors import Overloaded

RowKind = Literal["pooled", "tokens"]
"""The rows of a sequence that an engine returns: one that is pooled, or one for each token, or for each marked one."""

LOOKAHEAD = 32
PATIENCE = 5.0  # seconds
BRIEF = 128  # tokens
FOR_BRIEF = 0.25  # of what may wait


def is_brief(tokens: int) -> bool:
    """Whether a request that computes so many tokens, or a batch of them, may overtake longer ones."""
    return tokens <= BRIEF


def _nobody(outcomes: Sequence["Outcome"]) -> None:
    """The receiver of a request that nobody waits for."""


@dataclass(slots=True, eq=False)
class Request:
    """The common properties of the entries of one call. `receiver` gets their outcomes. `waiting` of them are in the
    queue, with `tokens` in all. `cost` is the number of tokens that all of them compute. A `dropped` request is not
    needed any more. One in the background gives way to all that are not."""

    deadline: float = float("inf")
    receiver: "Receiver" = _nobody
    is_background: bool = False
    dropped: bool = False
    waiting: int = 0
    tokens: int = 0
    cost: int = 0

    @property
    def is_brief(self) -> bool:
        return not self.is_background and is_brief(self.cost)

    def settle(self, outcome: "Outcome") -> None:
        """For requests whose receiver passes outcomes on to them."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Entry:
    """An encoding in the queue. `index` is its place in the request. `queued` is the time of its admission, set before
    it is pushed. `shared` is the number of its first tokens that all entries of the request share; a batch computes
    them once. `marked`: int32[M], the tokens that have rows, if rows are of tokens; None for all."""

    request: Request
    index: int
    ids: Sequence[int] | np.ndarray
    _: KW_ONLY
    token_types: Sequence[int] | np.ndarray | None = None
    prompt_tokens: int = 0
    attended: int | None = None
    row_kind: RowKind = "pooled"
    shared: int = 0
    marked: np.ndarray | None = None
    queued: float = 0.0
    tag: int = 0
    arrival: int = 0
    taken: bool = False

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def cost(self) -> int:
        """The number of tokens that this entry alone computes."""
        return len(self.ids) - self.shared


class Outcome:
    """The result of one entry: the kept value of its row, or an error. Times are in seconds."""

    __slots__ = ("entry", "inference", "queue", "result")

    def __init__(self, entry: Entry, result: Any, queue: float, inference: float):
        self.entry, self.result, self.queue, self.inference = entry, result, queue, inference


Receiver = Callable[[Sequence[Outcome]], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """The next batch, and the entries that were found past their deadline."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batch) + len(self.expired)


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch_tokens` and `batch_size` limit a batch. `tokens`, `size` (entries) and `requests` limit the queue. With
    `brief_apart` brief requests share no batch with others."""

    batch_tokens: int
    batch_size: int
    tokens: int
    size: int = 1 << 30
    requests: int = 1 << 30
    brief_apart: bool = False


@dataclass(slots=True)
class _Waiting:
    """Counts of what waits, of requests in the background or of the others."""

    size: int = 0
    tokens: int = 0
    requests: int = 0


class Queue:
    """An entry longer than a batch runs alone. A request larger than the queue is admitted when nothing else waits.

    `len` is the number of waiting entries. Entries that were dropped, or taken through another order, stay in the heap
    and in the order of ages until they come up, or until they are the larger part.

    At most `most_tokens` may wait, a part of which is reserved for brief requests. The scheduler lowers it to the work
    that the engine does in good time.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.most_tokens = limits.tokens
        self._live, self._background = _Waiting(), _Waiting()
        self._brief_tokens = 0
        self._heap: list[tuple[int, int, Entry]] = []
        self._ages: deque[Entry] = deque()
        self._brief: deque[Entry] = deque()
        self._behind: deque[Entry] = deque()
        self._takes_oldest = self._by_age = False
        self._virtual_time = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return self._live.size + self._background.size

    @property
    def texts(self) -> int:
        """The number of waiting entries that are not in the background."""
        return self._live.size

    @property
    def tokens(self) -> int:
        """Their tokens."""
        return self._live.tokens

    def push(self, entries: Iterable[Entry]) -> None:
        """Admits all entries of one request, or none. Raises Overloaded."""
        entries = list(entries)
        request, tag = entries[0].request, self._virtual_time
        tokens, request.cost = sum(entry.tokens for entry in entries), sum(entry.cost for entry in entries)
        among = self._of(request)
        if among.size and not self._has_room(among, len(entries), tokens, is_brief=request.is_brief):
            raise Overloaded
        request.waiting, request.tokens = len(entries), tokens
        among.requests += 1
        among.size += len(entries)
        among.tokens += tokens
        if request.is_background:
            self._behind.extend(entries)
            return
        for entry in entries:
            entry.tag, entry.arrival = tag, self._arrivals
            self._push(entry)
            self._arrivals += 1
            tag += entry.cost
        self._ages.extend(entries)
        if request.is_brief:
            self._brief.extend(entries)
            self._brief_tokens += tokens

    def _of(self, request: Request) -> _Waiting:
        return self._background if request.is_background else self._live

    def _has_room(self, among: _Waiting, size: int, tokens: int, *, is_brief: bool) -> bool:
        """Whether there is room for one more request. Others may not use the part that is reserved for brief ones."""
        if among.size + size > self.limits.size or among.requests >= self.limits.requests:
            return False
        brief_tokens = self._brief_tokens if among is self._live else 0
        others, most_of_others = among.tokens - brief_tokens, self.most_tokens * (1 - FOR_BRIEF)
        if is_brief:
            return min(others, most_of_others) + brief_tokens + tokens <= self.most_tokens
        return others + tokens <= most_of_others and among.tokens + tokens <= self.most_tokens

    def drop(self, request: Request) -> None:
        """Removes the waiting entries of a request that is not needed any more."""
        request.dropped = True
        among = self._of(request)
        among.requests -= request.waiting > 0
        among.size -= request.waiting
        self._forget(request, request.tokens)
        request.waiting = request.tokens = 0
        self._sweep()

    def finish_oldest_first(self) -> None:
        """From now on the oldest entries come first: when time is limited, some requests should be finished rather than
        each in part."""
        self._by_age = True

    def take(self, now: float) -> Taken:
        """Removes and returns the next batch; empty only if the queue is."""
        if not self._live.size:
            return self._take_background(now)
        is_old = bool(self._ages) and self._ages[0].queued + PATIENCE <= now
        self._takes_oldest = self._by_age or (not self._takes_oldest and is_old)
        taken = Taken()
        if self._takes_oldest:
            room = self._fill(taken, self._ages, self._ages.popleft, self._ages.appendleft, now)
        else:
            room = self._fill(taken, self._heap, self._pop, self._push, now)
            if taken.batch:
                self._virtual_time = max(self._virtual_time, taken.batch[0].tag)
        self._served(self.limits.batch_tokens - room)
        self._remove(taken)
        return taken

    def _take_background(self, now: float) -> Taken:
        taken = Taken()
        self._fill(taken, self._behind, self._behind.popleft, self._behind.appendleft, now)
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
        """Fills a batch with waiting entries, in their order; returns the number of tokens that would still fit."""
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
        """Removes and returns entries of brief requests, oldest first, at most BRIEF tokens; empty if none wait."""
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
        self._virtual_time += -(-tokens // max(1, self._live.requests))

    def _remove(self, taken: Taken) -> None:
        for entry in (*taken.batch, *taken.expired):
            entry.taken = True
            entry.request.waiting -= 1
            entry.request.tokens -= entry.tokens
            among = self._of(entry.request)
            among.requests -= entry.request.waiting == 0
            among.size -= 1
            self._forget(entry.request, entry.tokens)
        self._sweep()

    def _forget(self, request: Request, tokens: int) -> None:
        self._of(request).tokens -= tokens
        if request.is_brief:
            self._brief_tokens -= tokens

    def _sweep(self) -> None:
        self.has_brief()
        while self._ages and _gone(self._ages[0]):
            self._ages.popleft()
        while self._behind and _gone(self._behind[0]):
            self._behind.popleft()
        most = 2 * self._live.size + LOOKAHEAD
        if len(self._ages) > most:
            self._ages = deque(entry for entry in self._ages if not _gone(entry))
        if len(self._heap) > most:
            self._heap = [item for item in self._heap if not _gone(item[-1])]
            heapq.heapify(self._heap)
        if len(self._behind) > 2 * self._background.size + LOOKAHEAD:
            self._behind = deque(entry for entry in self._behind if not _gone(entry))


def _gone(entry: Entry) -> bool:
    return entry.taken or entry.request.dropped
