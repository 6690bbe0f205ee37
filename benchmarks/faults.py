"""A table of faults, each injected many times under load: the clients' results, and the time until the server is ready
again.

The clients send one request after another and never stop. A fault lasts from its injection to the first time that
readiness and a query are both answered with 200. Every later request must get 200, and the rows that its texts get
alone. Run: python -m benchmarks.faults
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
import orjson
import uvloop

from benchmarks.faulty_engine import poison
from benchmarks.http_load import ROOT
from benchmarks.processes import Tree, gone, served, stop
from benchmarks.soak import listed
from benchmarks.traffic import TASKS, Planned, Traffic, ids_of_all_lengths, texts_of_all_lengths
from benchmarks.wire import Ask, Http1, Lost, Refused

TASK = TASKS["embedding"]
CLIENTS = 4
MOST_TEXTS = 8  # of a client's request
CROWD = 20  # clients that leave, or are late, in one fault
INPUTS = 200
LIMIT = 60.0  # seconds after which a request counts as hung, and a server as not ready
PAUSE = 0.05  # seconds that a refused client waits
BETWEEN = 0.3  # seconds of good service between two faults
LASTING = 12.0  # the same after the death of a process: a sooner death counts as a failed start
SPARE = 8  # descriptors that a server may hold above the first count
DRAIN = "SIGTERM"
_READY = Ask("/health/ready", method="GET")
_QUERY = Ask(TASK.path, orjson.dumps({"input": "What is Deep Learning?"}))

SAFE = ("200",)
ENGINE_GONE = ("200", "424", "503", "429")
WORKER_GONE = (*ENGINE_GONE, "lost")


@dataclass
class Seen:
    """The results of one kind of fault: how the requests of its victims ended, those of others during it, and those of
    others at other times; and the seconds until ready."""

    victims: Counter[str] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ended:
    sent: float
    done: float
    how: str


class Clients:
    """Clients that send requests all the time."""

    def __init__(self, traffic: Traffic, http: Http1):
        self._traffic, self._http, self._rng = traffic, http, np.random.default_rng(0)
        self.ended: list[Ended] = []
        self._tasks: list[asyncio.Task] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]

    async def end(self) -> None:
        """Ends once each client has its last answer."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def _client(self) -> None:
        me = asyncio.current_task()
        while me in self._tasks:
            texts = 1 if self._rng.random() < 0.7 else int(self._rng.integers(2, MOST_TEXTS + 1))
            planned, sent = self._traffic.plan(self._rng, texts), time.monotonic()
            how = await self._ask(planned)
            self.ended.append(Ended(sent, time.monotonic(), how))
            if how != "200":
                await asyncio.sleep(PAUSE)

    async def _ask(self, planned: Planned) -> str:
        try:
            reply = await self._http.ask(planned.ask, LIMIT)
        except TimeoutError:
            return "hung"
        except Refused:
            return "refused"
        except Lost:
            return "lost"
        if reply.status != 200:
            return str(reply.status)
        try:
            return "wrong" if self._traffic.wrong(planned, reply) else "200"
        except ValueError:
            return "malformed"


Inject = Callable[[Tree, Http1], Awaitable[Counter[str]]]


@dataclass(frozen=True)
class Fault:
    """`inject` causes the fault and returns the results of the requests that cause it, of which `victims` are allowed.
    `allowed` are results of others meanwhile. `between` is the time of good service before it."""

    inject: Inject
    allowed: tuple[str, ...]
    victims: tuple[str, ...] = ()
    between: float = BETWEEN


def poisoned(fault: str) -> Inject:
    body = orjson.dumps({"input": [poison(fault)]})

    async def inject(server: Tree, http: Http1) -> Counter[str]:
        return Counter([await _status(http, Ask(TASK.path, body))])

    return inject


def killing(find: Callable[[Tree], int | None], sig: signal.Signals) -> Inject:
    async def inject(server: Tree, http: Http1) -> Counter[str]:
        pid = find(server)
        if pid is not None:  # otherwise the process is not back yet, which the next requests show
            os.kill(pid, sig)
            while not gone(pid):
                await asyncio.sleep(0.001)
        return Counter()

    return inject


def a_worker(server: Tree) -> int | None:
    return min(server.workers(), default=None)


async def nothing(server: Tree, http: Http1) -> Counter[str]:
    return Counter()


async def crowd_leaves(server: Tree, http: Http1) -> Counter[str]:
    return await _crowd(http, Ask(TASK.path, _QUERY.body), 0.005)


async def crowd_is_late(server: Tree, http: Http1) -> Counter[str]:
    return await _crowd(http, Ask(TASK.path, _large(), {"request-timeout-ms": "5"}), LIMIT)


def _large() -> bytes:
    return orjson.dumps({"input": ["a text of some length that many ask for at once"] * 64})


async def _crowd(http: Http1, ask: Ask, limit: float) -> Counter[str]:
    return Counter(await asyncio.gather(*(_status(http, ask, limit) for _ in range(CROWD))))


async def _status(http: Http1, ask: Ask, limit: float = LIMIT) -> str:
    try:
        return str((await http.ask(ask, limit)).status)
    except TimeoutError:
        return "hung" if limit == LIMIT else "left"
    except Refused:
        return "refused"
    except Lost:
        return "lost"


FAULTS = {
    "none": Fault(nothing, SAFE),
    "engine exception": Fault(poisoned("exception"), SAFE, ("424",)),
    "out of memory": Fault(poisoned("memory"), SAFE, ("424",)),
    "NaN rows": Fault(poisoned("nan"), SAFE, ("424",)),
    "engine stalls 2 s": Fault(poisoned("stall"), SAFE, ("200",)),
    "client gone": Fault(crowd_leaves, SAFE, ("200", "left")),
    "deadline": Fault(crowd_is_late, SAFE, ("200", "504")),
}
ENGINE_FAULTS = {
    "engine crashes in a batch": Fault(poisoned("crash"), ENGINE_GONE, ("424", "503"), LASTING),
    "engine gets SIGSEGV": Fault(killing(Tree.engine, signal.SIGSEGV), ENGINE_GONE, (), LASTING),
    "engine gets SIGKILL": Fault(killing(Tree.engine, signal.SIGKILL), ENGINE_GONE, (), LASTING),
}
WORKER_FAULTS = {"HTTP worker gets SIGKILL": Fault(killing(a_worker, signal.SIGKILL), WORKER_GONE, (), LASTING)}


async def repeat(fault: Fault, server: Tree, traffic: Traffic, times: int) -> Seen:
    """Injects a fault into one server several times, under load."""
    http = Http1(server.port)
    seen, clients, whole, idle = Seen(), Clients(traffic, http), parts(server), server.descriptors()
    windows = []
    clients.begin()
    for _ in range(times):
        await asyncio.sleep(fault.between)
        injected = time.monotonic()
        seen.victims += await fault.inject(server, http)
        if not await ready_again(server, http, whole, injected):
            seen.violations.append(f"not ready {LIMIT:.0f} s after a fault")
            break
        windows.append((injected, time.monotonic()))
        seen.seconds.append(windows[-1][1] - injected)
    await asyncio.sleep(BETWEEN)
    await clients.end()
    for one in clients.ended:
        beside = any(one.sent < until and one.done > since for since, until in windows)
        (seen.during if beside else seen.apart)[one.how] += 1
    http.close()
    await asyncio.sleep(1)
    check(seen, fault.allowed, fault.victims)
    if (held := server.descriptors()) > idle + SPARE:
        seen.violations.append(f"{idle} descriptors before, {held} after")
    return seen


def check(seen: Seen, during: Sequence[str], victims: Sequence[str]) -> None:
    """Adds the results that are not allowed to the violations."""
    kinds = (
        ("of others, meanwhile", seen.during, during),
        ("apart from it", seen.apart, SAFE),
        ("of its victims", seen.victims, victims),
    )
    for whose, ends, allowed in kinds:
        bad = sorted((how, count) for how, count in ends.items() if how not in allowed)
        seen.violations += [f"{count} {how} {whose}" for how, count in bad]


def parts(server: Tree) -> tuple[int, bool]:
    """The number of workers, and whether there is an engine process."""
    return len(server.workers()), server.engine() is not None


async def ready_again(server: Tree, http: Http1, whole: tuple[int, bool], since: float) -> bool:
    """Waits until the server has all its processes, says that it is ready, and answers."""
    while time.monotonic() - since < LIMIT:
        answered = await _status(http, _READY) == "200" and await _status(http, _QUERY) == "200"
        if answered and parts(server) == whole:
            return True
        await asyncio.sleep(0.005)
    return False


async def drains(server: Tree, traffic: Traffic, seen: Seen) -> None:
    """SIGTERM under load. Requests sent before it (seen `during` it) must be answered with 200, and the exit status
    must be 0. Requests sent after it count as its victims'; `seconds` are those until the end."""
    http = Http1(server.port)
    clients = Clients(traffic, http)
    clients.begin()
    await asyncio.sleep(3 * BETWEEN)
    told = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    while server.process.poll() is None and time.monotonic() - told < LIMIT:
        await asyncio.sleep(0.005)
    seen.seconds.append(time.monotonic() - told)
    await clients.end()
    http.close()
    if (status := stop(server)) != 0:
        seen.violations.append(f"exit status {status}")
    for one in clients.ended:
        ends = seen.apart if one.done < told else seen.during if one.sent < told else seen.victims
        ends[one.how] += 1


def show(name: str, seen: Seen) -> None:
    median, most = (np.median(seen.seconds), max(seen.seconds)) if seen.seconds else (np.nan, np.nan)
    click.echo(
        f"{name:26} {len(seen.seconds):5} {1000 * median:10.0f} {1000 * most:10.0f}  "
        f"{listed(seen.victims):22} {listed(seen.during):40} {listed(seen.apart)}"
    )
    for violation in seen.violations:
        click.echo(f"    VIOLATION {violation}")


@click.command(context_settings={"show_default": True})
@click.option("--times", default=20, help="each fault is injected")
@click.option("--fault", "chosen", multiple=True, help="by its name in the table; else all")
@click.option("--workers", type=int, help="HTTP workers of the server")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for the servers' logs")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(times: int, chosen: Sequence[str], workers: int | None, work: Path, json_file: Path | None) -> None:
    """Prints what each fault costs the clients; the exit status is 1 where one costs more than it may."""
    flags = ["--engine", "native", *(["--workers", str(workers)] if workers else [])]
    open_server = partial(
        served, TASK.config, *flags, log=work / "faults.log", path=[ROOT / "benchmarks" / "faulty_site"]
    )
    with open_server() as server:
        traffic = uvloop.run(learned(server))
        available = FAULTS | (ENGINE_FAULTS if server.engine() else {}) | (WORKER_FAULTS if server.workers() else {})
        for name in (ENGINE_FAULTS | WORKER_FAULTS).keys() - available.keys():
            click.echo(f"{name}: left out, the server has no such process")
    click.echo(
        f"{'fault':26} {'times':>5} {'median ms':>10} {'max ms':>10}  {'the asker':22} {'others, meanwhile':40} apart"
    )
    table = {}
    for name, fault in available.items():
        if not chosen or name in chosen:
            with open_server() as server:
                table[name] = uvloop.run(repeat(fault, server, traffic, times))
            show(name, table[name])
    if not chosen or DRAIN in chosen:
        table[DRAIN] = Seen()
        for _ in range(times):
            with open_server() as server:
                uvloop.run(drains(server, traffic, table[DRAIN]))
        check(table[DRAIN], SAFE, ("200", "503", "lost", "refused"))
        show(DRAIN, table[DRAIN])
    if json_file:
        json_file.write_text(json.dumps({name: vars(seen) for name, seen in table.items()}, indent=1) + "\n")
    sys.exit(any(seen.violations for seen in table.values()))


async def learned(server: Tree) -> Traffic:
    rng, http = np.random.default_rng(0), Http1(server.port)
    inputs = texts_of_all_lengths(rng, INPUTS) + ids_of_all_lengths(rng, INPUTS // 10)
    try:
        return await Traffic.learn(TASK, http, inputs)
    finally:
        http.close()


if __name__ == "__main__":
    main()
