"""Load on one server for a bounded time: clients that wait for their answers, or requests at a rate."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import uvloop

from bei.bench.connection import Connection, Place

_PAUSE = 0.1  # seconds before a client whose connection failed tries again
_PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Load:
    """`clients` that each wait for an answer before the next request; or, in place of them, `rate` requests a second at
    random moments (Poisson), whether or not answers come."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.clients is not None:
            return f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.rate:g}/s"


@dataclass(frozen=True)
class Window:
    """Seconds: of warming up, which are not counted; of counting; and after which a request without an answer is an
    error."""

    warmup: float
    counted: float
    timeout: float


@dataclass(frozen=True)
class Target:
    """A server, and the requests that it gets in turn, of `texts` texts each."""

    name: str
    place: Place
    requests: Sequence[bytes]
    texts: int


@dataclass(frozen=True)
class Figures:
    """Requests and texts a second that were answered with 200, their latencies in ms (None without an answer), and the
    count of each kind of error: a status, `timeout` or `connection`. A request of an open loop begins when it was due,
    so that a server that falls behind cannot hide it."""

    requests_per_second: float
    texts_per_second: float
    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None
    answered: int
    errors: Mapping[str, int]


def measure(target: Target, load: Load, window: Window, seed: int = 0) -> Figures:
    """Loads a server, and waits for the end of it."""
    run = _Run(target, window)
    uvloop.run(run.all(load, seed))
    return run.figures()


class _Run:
    def __init__(self, target: Target, window: Window) -> None:
        self._target, self._window = target, window
        self._requests: Iterator[bytes] = cycle(target.requests)
        self._idle: list[Connection] = []
        self._waiting: dict[Connection, float] = {}
        """Since when each of them waits for its answer."""
        self._begin = 0.0
        self._took: list[float] = []
        self._errors: Counter[str] = Counter()

    def figures(self) -> Figures:
        rate = len(self._took) / self._window.counted
        milliseconds = 1000 * np.array(self._took)
        texts, errors = rate * self._target.texts, dict(self._errors)
        if not self._took:
            return Figures(rate, texts, None, None, None, None, 0, errors)
        p50, p90, p99 = map(float, np.percentile(milliseconds, _PERCENTS))
        return Figures(rate, texts, p50, p90, p99, float(milliseconds.mean()), len(self._took), errors)

    async def all(self, load: Load, seed: int) -> None:
        watch = asyncio.create_task(self._watch())
        await (self._closed(load.clients) if load.clients is not None else self._open(load.rate or 1.0, seed))
        watch.cancel()
        for connection in self._idle:
            connection.close()

    async def _closed(self, clients: int) -> None:
        self._begin = time.perf_counter() + self._window.warmup

        async def client() -> None:
            while True:
                begun = time.perf_counter()
                outcome = await self._ask()
                self._note(time.perf_counter(), begun, outcome)
                if outcome == "connection":
                    await asyncio.sleep(_PAUSE)

        await self._for_a_while([client() for _ in range(clients)])

    async def _open(self, rate: float, seed: int) -> None:
        seconds = self._window.warmup + self._window.counted
        started = time.perf_counter()
        self._begin = started + self._window.warmup
        due, rng, asked = 0.0, np.random.default_rng(seed), set[asyncio.Task[None]]()

        async def request(at: float) -> None:
            outcome = await self._ask()
            self._note(at, at, outcome)

        while (due := due + rng.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            task = asyncio.create_task(request(started + due))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)

    async def _for_a_while(self, clients: Sequence[Coroutine[None, None, None]]) -> None:
        tasks = [asyncio.create_task(client) for client in clients]
        await asyncio.wait(tasks, timeout=self._window.warmup + self._window.counted)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self) -> str:
        """The status of the next request's answer, or the word for an error without one."""
        begun = time.perf_counter()
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            self._waiting[connection] = begun
            try:
                status = await connection.ask(next(self._requests))
            finally:
                del self._waiting[connection]
        except TimeoutError:
            return "timeout"
        except OSError:
            return "connection"
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return str(status)

    async def _connect(self) -> Connection:
        async with asyncio.timeout(self._window.timeout):
            return await self._target.place.connect()

    async def _watch(self) -> None:
        """Gives up each request when its time is over. A timer for each takes a quarter of the client's time."""
        timeout = self._window.timeout
        while True:
            now = time.perf_counter()
            for connection, since in [*self._waiting.items()]:
                if since + timeout <= now:
                    connection.give_up()
            oldest = min((since for since in self._waiting.values() if since + timeout > now), default=now)
            await asyncio.sleep(oldest + timeout - now)

    def _note(self, counts_at: float, begun: float, outcome: str) -> None:
        """Counts a request that `counts_at` within the window."""
        if not 0 <= counts_at - self._begin < self._window.counted:
            return
        if outcome == "200":
            self._took.append(time.perf_counter() - begun)
        else:
            self._errors[outcome] += 1
