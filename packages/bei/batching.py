"""What runs next. Pure: no thread, no clock, no device; the caller brings the time.

Start-time fair queueing over tokens (Goyal, Vin and Cheng, 1996). An entry's tag is the virtual time at which its
request arrived plus the tokens of the entries before it in that request; the least tag opens the next batch. Virtual
time is the service that each waiting request has had by right: a batch moves it on by its tokens over the requests that
wait. So a query that arrives behind a bulk of 2,048 texts waits for one batch, not for the bulk; and nothing starves,
for under any flood of new requests virtual time passes every tag. What still fits the budget fills the batch, in order
of tags; what does not keeps its place, and no more than LOOKAHEAD such entries are looked past.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from bei.engines.base import RowKind
from bei.errors import Overloaded

LOOKAHEAD = 32


@dataclass(slots=True, eq=False)
class Request:
    """What the entries of one call share. `dropped`: nobody wants it any more; `waiting`: its entries in the queue."""

    deadline: float = float("inf")
    dropped: bool = False
    waiting: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One encoding that waits: `index` is its place in the request, `queued` the time at which it was admitted,
    `shared` how many of its first tokens are those of all its request's entries, and computed once in a batch."""

    request: Request
    index: int
    ids: list[int]
    token_types: list[int] | None = None
    prompt_tokens: int = 0
    attended: int | None = None
    rows: RowKind = "pooled"
    shared: int = 0
    queued: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def cost(self) -> int:
        """Tokens that are its own to compute."""
        return len(self.ids) - self.shared


@dataclass(frozen=True, slots=True)
class Taken:
    """The next batch, and what fell out on the way to it: entries nobody waits for, or past their deadline."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)


class Queue:
    """`max_batch_tokens` and `max_batch_size` cut a batch; `max_queue_tokens` bounds what waits.

    An entry longer than a batch runs alone. A request larger than the queue is admitted when nothing else waits.
    """

    def __init__(self, max_batch_tokens: int, max_batch_size: int, max_queue_tokens: int):
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_size = max_batch_size
        self.max_queue_tokens = max_queue_tokens
        self.tokens = 0
        self._heap: list[tuple[int, int, Entry]] = []
        self._virtual_time = 0
        self._arrivals = 0
        self._requests = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, entries: Iterable[Entry]) -> None:
        """Admit one request's entries, all or none. Raises Overloaded."""
        entries = list(entries)
        tokens = sum(entry.tokens for entry in entries)
        if self._heap and self.tokens + tokens > self.max_queue_tokens:
            raise Overloaded("Model is overloaded")
        self._requests += 1
        tag = self._virtual_time
        for entry in entries:
            entry.request.waiting += 1
            heapq.heappush(self._heap, (tag, self._arrivals, entry))
            self._arrivals += 1
            tag += entry.cost
        self.tokens += tokens

    def take(self, now: float) -> Taken:
        """Remove and return the next batch: empty only when the queue is."""
        taken, passed, room = Taken(), [], self.max_batch_tokens
        while self._heap and len(taken.batch) < self.max_batch_size and len(passed) < LOOKAHEAD:
            tag, arrival, entry = heapq.heappop(self._heap)
            if entry.request.dropped or entry.request.deadline <= now:
                taken.expired.append(entry)
                continue
            if not taken.batch or (entry.cost <= room and entry.rows == taken.batch[0].rows):
                if not taken.batch:
                    self._virtual_time = max(self._virtual_time, tag)
                taken.batch.append(entry)
                room -= entry.cost
            else:
                passed.append((tag, arrival, entry))
        for item in passed:
            heapq.heappush(self._heap, item)
        self._virtual_time += -(-(self.max_batch_tokens - room) // max(1, self._requests))
        self._forget(taken.batch + taken.expired)
        return taken

    def _forget(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.tokens -= entry.tokens
            entry.request.waiting -= 1
            self._requests -= entry.request.waiting == 0
