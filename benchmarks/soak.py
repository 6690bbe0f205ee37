"""Minutes of mixed requests at twice the capacity; the server must not hang, lose a request, err or grow.

Arrivals are a Poisson process that does not wait for answers (open loop). Some well-formed requests have deadlines.
Clients abandon some, over HTTP/1.1 by closing, over HTTP/2 by resetting the stream. Garbage comes on top. Every 200 is
compared with the answer that its texts get alone. Run: python -m benchmarks.soak
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvloop

from benchmarks.garbage import Throw, throws
from benchmarks.processes import Tree, served, stop
from benchmarks.traffic import TASKS, Traffic, ids_of_all_lengths, request_sizes, texts_of_all_lengths
from benchmarks.wire import Http1, Http2, Lost

INPUTS = 400
IDS = 60
CALIBRATING = 16  # clients that send one request after another while the capacity is measured
PAUSE = 1.0  # seconds after which a refused client tries again
OVERLOAD = 2.0
KINDS = {"plain": 0.75, "deadline": 0.15, "left": 0.10}
GARBAGE = 0.1  # of all arrivals, on top
HTTP2 = 0.2  # of requests
DEADLINES = (1, 20, 500, 5000)  # ms
GROWTH = 1.05
SETTLED = 2  # minutes after which memory must not grow
SPARE = 16  # descriptors that a server may hold above the first count
BAD = (
    *("hung", "lost", "malformed", "wrong", "unasked", "no Retry-After"),
    *("garbage: silence", "garbage: accepted", "garbage: failed"),
)


@dataclass
class Minute:
    """`ends`: the ends of requests, by kind; `seconds`: of 200s without a deadline; MB and descriptors once per second,
    of all servers, without the descriptors of our own connections."""

    ends: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    overdue: float = 0.0  # seconds; the longest time from a request's own deadline to its answer
    late: float = 0.0  # seconds by which this program sent an arrival late


@dataclass
class Target:
    """One server under load."""

    server: Tree
    traffic: Traffic
    http1: Http1
    http2: Http2
    garbage: dict[str, Throw]

    def connections(self) -> int:
        return len(self.http1.open) + len(self.http2.open)


class Soak:
    def __init__(self, targets: Sequence[Target], limit: float, seed: int):
        self._targets, self._limit, self._rng = targets, limit, np.random.default_rng(seed)
        self._tasks: set[asyncio.Task] = set()
        self._raw = 0  # connections of garbage
        self.minutes: list[Minute] = []
        self.examples: dict[str, str] = {}  # the first of each bad end

    async def capacity(self, seconds: float) -> float:
        """Plain requests per second that are answered with 200 when each client waits for its answer."""
        self.minutes = [Minute()]
        until = time.monotonic() + seconds

        async def client(number: int) -> None:
            while time.monotonic() < until:
                if await self._ask("plain", self._targets[number % len(self._targets)]) != "200":
                    await asyncio.sleep(PAUSE)

        clients = asyncio.gather(*map(client, range(CALIBRATING)))
        await asyncio.sleep(seconds)
        answered = self.minutes[0].ends["200"]
        await clients
        return answered / seconds

    async def run(self, rate: float, minutes: float) -> None:
        """Sends `rate` well-formed requests per second, and garbage, to the servers in turn."""
        self.minutes, number = [], 0
        sampling = asyncio.create_task(self._sample())
        due, end = time.monotonic(), time.monotonic() + 60 * minutes
        minute_ends = due
        while due < end:
            if due >= minute_ends:
                if self.minutes:
                    self._show(self.minutes[-1])
                self.minutes.append(Minute())
                minute_ends += 60
            wait = due - time.monotonic()
            self.minutes[-1].late = max(self.minutes[-1].late, -wait)
            await asyncio.sleep(max(0, wait))
            self._begin(self._targets[number % len(self._targets)])
            number += 1
            due += self._rng.exponential(1 / (rate * (1 + GARBAGE)))
        sampling.cancel()
        await asyncio.gather(*self._tasks)
        self._show(self.minutes[-1])

    def _begin(self, target: Target) -> None:
        if self._rng.random() < GARBAGE / (1 + GARBAGE):
            name = list(target.garbage)[self._rng.integers(len(target.garbage))]
            task = asyncio.create_task(self._throw(name, target.garbage[name]))
        else:
            task = asyncio.create_task(self._ask(self._rng.choice(list(KINDS), p=list(KINDS.values())), target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, kind: str, target: Target) -> str:
        """The end of one request."""
        minute = self.minutes[-1]
        end, detail = await self._result(minute, kind, target)
        self._end(minute, kind, end, detail)
        return end

    async def _result(self, minute: Minute, kind: str, target: Target) -> tuple[str, str]:
        headers, limit, timeout = {}, self._limit, np.inf
        if kind == "deadline":
            timeout = self._rng.choice(DEADLINES) / 1000
            headers = {"request-timeout-ms": str(round(1000 * timeout))}
        elif kind == "left":
            limit = self._rng.exponential(0.1)
        planned = target.traffic.plan(self._rng, request_sizes(self._rng), headers)
        http = target.http2 if self._rng.random() < HTTP2 else target.http1
        try:
            reply = await http.ask(planned.ask, limit)
        except TimeoutError:
            return "left" if kind == "left" else "hung", f"{len(planned.picks)} texts"
        except Lost as exc:
            return "lost", str(exc)
        minute.overdue = max(minute.overdue, reply.seconds - timeout)
        if reply.status == 200:
            try:
                wrong = target.traffic.wrong(planned, reply)
            except ValueError as exc:
                return "malformed", str(exc)
            if kind == "plain":
                minute.seconds.append(reply.seconds)
            return "wrong" if wrong else "200", f"{wrong} of {len(planned.picks)} {planned.form}"
        if reply.status == 429 and not reply.headers.get("retry-after", "").isdigit():
            return "no Retry-After", ""
        if reply.status in (429, 503) or (reply.status == 504 and kind == "deadline"):
            return str(reply.status), ""
        return "unasked", f"{reply.status} {bytes(reply.body[:200])!r}"

    async def _throw(self, name: str, throw: Throw) -> None:
        minute = self.minutes[-1]
        self._raw += 1
        verdict = await throw()
        self._raw -= 1
        self._end(minute, "garbage", f"garbage: {verdict}", name)

    def _end(self, minute: Minute, kind: str, end: str, detail: str) -> None:
        minute.ends[end] += 1
        if end in BAD:
            self.examples.setdefault(end, f"{kind}, {detail}")

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(1)
            ours = self._raw + sum(target.connections() for target in self._targets)
            self.minutes[-1].resident.append(sum(target.server.resident() for target in self._targets))
            self.minutes[-1].descriptors.append(sum(target.server.descriptors() for target in self._targets) - ours)

    def _show(self, minute: Minute) -> None:
        if len(self.minutes) == 1:
            times = f"{'p50 s':>7} {'p99 s':>7} {'max s':>7}"
            click.echo(f"{'min':>4} {times} {'MB':>7} {'fds':>5} {'overdue s':>9} {'late s':>6}  ends")
        p50, p99, most = np.percentile(minute.seconds or [np.nan], [50, 99, 100])
        memory, files = np.median(minute.resident or [np.nan]), np.median(minute.descriptors or [np.nan])
        times = f"{p50:7.2f} {p99:7.2f} {most:7.2f}"
        rest = f"{memory:7.0f} {files:5.0f} {minute.overdue:9.2f} {minute.late:6.2f}"
        click.echo(f"{len(self.minutes):4} {times} {rest}  {listed(minute.ends)}")

    def total(self) -> Counter[str]:
        return sum((minute.ends for minute in self.minutes), Counter())


def listed(ends: Counter[str]) -> str:
    return ", ".join(f"{end} {count}" for end, count in sorted(ends.items()))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max; empty without values."""
    if not len(values):
        return {}
    p50, p99, most = np.percentile(values, [50, 99, 100])
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


def medians(minutes: Iterable[Sequence[float]]) -> list[float]:
    """Of each minute's values, where it has any."""
    return [float(np.median(values)) for values in minutes if values]


def grown(minutes: Sequence[Minute], settled: int = SETTLED) -> float | None:
    """The largest median of MB after the `settled` first minutes, divided by the last of those; None in a shorter
    run."""
    found = medians(minute.resident for minute in minutes)
    return max(found[settled:]) / found[settled - 1] if len(found) > settled else None


def violations(soak: Soak, before: int, after: int, tracebacks: int, statuses: Sequence[int]) -> list[str]:
    """The rules that a server broke. `before` and `after` are descriptors of idle servers."""
    total = soak.total()
    found = [f"{total[end]} {end}; the first: {example}" for end, example in soak.examples.items()]
    if (growth := grown(soak.minutes)) and growth > GROWTH:
        found.append(f"memory grew to {growth:.3f} of its size after {SETTLED} minutes")
    if after > before + SPARE:
        found.append(f"{before} descriptors before, {after} after")
    if tracebacks:
        found.append(f"{tracebacks} tracebacks in the log")
    if any(statuses):
        found.append(f"exit statuses {statuses} after SIGTERM")
    return found


@dataclass(frozen=True)
class Run:
    """The options of every program that loads servers for minutes."""

    minutes: float
    calibrate: float
    limit: float
    flags: Sequence[str]
    seed: int
    work: Path
    json_file: Path | None


def for_minutes(command: Callable[..., None]) -> click.Command:
    """A program that loads servers for minutes: `command` gets the options of all such programs as `run`."""

    @wraps(command)
    def collected(**given: Any) -> None:
        command(run=Run(**{field.name: given.pop(field.name) for field in fields(Run)}), **given)

    options = (
        click.option("--minutes", default=30.0),
        click.option("--calibrate", default=30.0, help="seconds in which capacity is measured"),
        click.option("--limit", default=180.0, help="seconds after which a request hangs"),
        click.option("--flag", "flags", multiple=True, help="of `bei serve`, as --flag=--workers=2"),
        click.option("--seed", default=0),
        click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for configs and logs"),
        click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too"),
    )
    for option in reversed(options):
        collected = option(collected)
    return click.command(context_settings={"show_default": True})(collected)


async def measure(servers: dict[str, Tree], run: Run, rate: float | None) -> tuple[Soak, dict[str, float], int, int]:
    """The soak, its capacity and rate, and the descriptors of idle servers before and after."""
    rng, targets = np.random.default_rng(run.seed), []
    for name, server in servers.items():
        http1, http2 = Http1(server.port), Http2(server.port)
        inputs = texts_of_all_lengths(rng, INPUTS) + (ids_of_all_lengths(rng, IDS) if name == "embedding" else [])
        traffic = await Traffic.learn(TASKS[name], http1, inputs)
        garbage = throws(server.port, TASKS[name].path, http1, http2, rng)
        targets.append(Target(server, traffic, http1, http2, garbage))
    before = await idle(targets)
    soak = Soak(targets, run.limit, run.seed)
    capacity = 0.0
    if rate is None:
        capacity = await soak.capacity(run.calibrate)
        rate = OVERLOAD * capacity
        click.echo(f"{capacity:.1f} requests per second are answered; {rate:.1f} will be sent")
    await soak.run(rate, run.minutes)
    return soak, {"capacity": capacity, "rate": rate}, before, await idle(targets)


async def idle(targets: Sequence[Target]) -> int:
    """The descriptors once our connections are closed and the servers have noticed it."""
    for target in targets:
        target.http1.close()
        target.http2.close()
    await asyncio.sleep(3)
    return sum(target.server.descriptors() for target in targets)


@for_minutes
@click.option(
    "--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), default=["embedding"], help="one server each"
)
@click.option("--rate", type=float, help="well-formed requests per second, instead of twice the capacity")
def main(run: Run, tasks: Sequence[str], rate: float | None) -> None:
    """Mixed requests at twice the capacity; the exit status is 1 where a server broke a rule."""
    with ExitStack() as stack:
        servers = {
            task: stack.enter_context(served(TASKS[task].config, *run.flags, log=run.work / f"soak-{task}.log"))
            for task in tasks
        }
        soak, rates, before, after = uvloop.run(measure(servers, run, rate))
        tracebacks = sum(server.tracebacks() for server in servers.values())
        statuses = [stop(server) for server in servers.values()]
    found = violations(soak, before, after, tracebacks, statuses)
    click.echo(f"in all: {listed(soak.total())}")
    click.echo(f"descriptors before and after: {before}, {after}; memory: {grown(soak.minutes) or float('nan'):.3f}")
    finish(found, soak.minutes, {**rates, "tasks": list(tasks), "descriptors": [before, after]}, run.json_file)


def finish(found: Sequence[str], minutes: Sequence[Minute], figures: dict, json_file: Path | None) -> None:
    """Prints the violations, writes the figures, and exits: with 1 if there is a violation."""
    for line in found:
        click.echo(f"VIOLATION {line}")
    if json_file:
        figures = {**figures, "violations": found, "minutes": [figures_of(minute) for minute in minutes]}
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(found))


def figures_of(minute: Minute) -> dict:
    return {
        "ends": minute.ends,
        "seconds": percentiles(minute.seconds),
        "resident_mb": percentiles(minute.resident),
        "descriptors": percentiles(minute.descriptors),
        "overdue": minute.overdue,
        "late": minute.late,
    }


if __name__ == "__main__":
    main()
