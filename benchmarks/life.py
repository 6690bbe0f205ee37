"""Minutes of mixed requests at twice the capacity to one server of five models, whose life is disturbed: each minute a
SIGHUP with a changed config, a model that is unloaded by hand, one that is loaded, and a SIGKILL of a random engine.

Requests and their ends are those of `benchmarks.soak`, without garbage. A 424 or 503 of the killed model within seconds
of the SIGKILL, or until its engine is back, is what the fault allows; any other one breaks a rule: an unload answers
the requests that the model has, and others wait for the next load. Memory is compared at moments with one engine for
each model, after the first cycle: as many minutes as there are models. Descriptors of the last minute are compared with
those of the first cycle's end. Run: python -m benchmarks.life
"""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import uvloop
import yaml

from benchmarks.http_load import ROOT
from benchmarks.processes import Tree, served, stop
from benchmarks.soak import (
    BAD,
    GROWTH,
    OVERLOAD,
    SPARE,
    Minute,
    Run,
    Soak,
    Target,
    finish,
    for_minutes,
    grown,
    listed,
    medians,
)
from benchmarks.traffic import TASKS, Traffic, texts_of_all_lengths
from benchmarks.wire import Ask, Http1, Http2

INPUTS = 100  # of each model
FAULT = 20.0  # seconds after a SIGKILL in which the model may answer 424 and 503
NOTICED = 5.0  # seconds in which the server notices a SIGKILL
MOMENTS = {"hang_up": 5, "unload": 20, "load": 30, "kill": 40}  # seconds of each minute
_ENGINE = "bei.engines.child"
_DIED, _BACK = (re.compile(f"{text}.* model=(\\S+)") for text in ("the engine's process died by", "the engine is back"))
_DIED_LOADING = re.compile("the engine's process ended by .* while it loaded.* model=(\\S+)")


class Life(Soak):
    """`configs` are the server's, by the names of their models."""

    def __init__(self, targets: Sequence[Target], limit: float, seed: int, configs: dict[str, Path]):
        super().__init__(targets, limit, seed)
        self._server, self._http, self._configs = targets[0].server, targets[0].http1, configs
        self._killed: dict[str, float] = {}
        """When, by the names of the models."""
        self._down: Set[str] = frozenset()
        self._parked: list[tuple[Minute, str, str, str, str]] | None = None
        """Ends while it is not known whose engine was killed."""
        self.acts: list[str] = []
        self.unasked: Counter[str] = Counter()
        """The statuses that nobody asked for."""

    @property
    def kept(self) -> float:
        """The descriptors of the last minute above those of the end of the first cycle; medians."""
        found = medians(minute.descriptors for minute in self.minutes)
        return found[-1] - found[len(self._configs) - 1] if len(found) > len(self._configs) else 0.0

    @property
    def grown(self) -> float | None:
        """The growth of memory after the first cycle, as a factor."""
        return grown(self.minutes, settled=len(self._configs))

    async def disturb(self) -> None:
        """Acts at the moments of each minute, until it is cancelled."""
        begun = time.monotonic()
        for minute in range(10_000):
            for act, second in MOMENTS.items():
                await asyncio.sleep(max(0.0, begun + 60 * minute + second - time.monotonic()))
                name = list(self._configs)[self._rng.integers(len(self._configs))]
                try:
                    done = await getattr(self, act)(name)
                except TimeoutError:
                    done = self.examples.setdefault("hung", f"{act} {name}")
                self.acts.append(f"{act} {name}: {done}")

    async def hang_up(self, name: str) -> str:
        """Another batch size, so that the model is loaded anew beside the old one."""
        config = json.loads(self._configs[name].read_text())
        build = config["trt_llm"]["build"]
        build["max_batch_size"] = 200 if build.get("max_batch_size", 256) == 256 else 256
        self._configs[name].write_text(json.dumps(config))
        before = self._server.log.read_text().count("the configs are")
        self._server.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(self._limit):
            while self._server.log.read_text().count("the configs are") == before:
                await asyncio.sleep(0.1)
        return "read"

    async def unload(self, name: str) -> str:
        return await self._by_hand(name, "unload")

    async def load(self, name: str) -> str:
        return await self._by_hand(name, "load")

    async def _by_hand(self, name: str, act: str) -> str:
        reply = await self._http.ask(Ask(f"/models/{name}/{act}"), self._limit)
        if reply.status != 200 and not self._in_fault(name):
            self.examples.setdefault("unasked", f"{act} {name}: {reply.status} {bytes(reply.body[:200])!r}")
        return str(reply.status)

    async def kill(self, _: str) -> str:
        """A random engine; the log says whose it was."""
        before, engines, moment = self._ends(), self._engines(), time.monotonic()
        self._parked, new = [], Counter[str]()
        os.kill(engines[self._rng.integers(len(engines))], signal.SIGKILL)
        while not new and time.monotonic() < moment + NOTICED:
            await asyncio.sleep(0.02)
            new = self._ends() - before
        self._killed |= dict.fromkeys(new, moment)
        parked, self._parked = self._parked, None
        for end in parked:
            self._judge(*end)
        return f"killed an engine of {', '.join(new) or 'nobody'}"

    def _deaths(self) -> Counter[str]:
        return Counter(_DIED.findall(self._server.log.read_text()))

    def _ends(self) -> Counter[str]:
        """Deaths, and those of engines that were loading, which no line calls back."""
        return self._deaths() + Counter(_DIED_LOADING.findall(self._server.log.read_text()))

    def _engines(self) -> list[int]:
        return [pid for pid in self._server.pids()[1:] if _ENGINE in command(pid)]

    def _in_fault(self, name: str) -> bool:
        since = self._killed.get(name)
        return since is not None and (name in self._down or time.monotonic() < since + FAULT)

    async def _ask(self, kind: str, target: Target) -> str:
        name = next(name for name, of in zip(self._configs, self._targets, strict=True) if of is target)
        minute = self.minutes[-1]
        end, detail = await self._result(minute, kind, target)
        if self._parked is None:
            self._judge(minute, kind, end, detail, name)
        else:
            self._parked.append((minute, kind, end, detail, name))
        return end

    def _judge(self, minute: Minute, kind: str, end: str, detail: str, name: str) -> None:
        if (end == "503" or (end == "unasked" and detail.startswith(("424", "503")))) and self._in_fault(name):
            end = "fault"
        elif end in ("503", "unasked"):
            self.unasked[f"{detail[:3] or end} of {name}"] += 1
            end = "unasked"
        self._end(minute, kind, end, detail or end)

    def _begin(self, target: Target) -> None:
        """No garbage."""
        kind = self._rng.choice(["plain", "deadline", "left"], p=[0.75, 0.15, 0.1])
        task = asyncio.create_task(self._ask(kind, target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(1)
            ours = sum(target.connections() for target in self._targets)
            returns = Counter(_BACK.findall(self._server.log.read_text()))
            self._down = (self._deaths() - returns).keys()
            if len(self._engines()) == len(self._configs):
                self.minutes[-1].resident.append(self._server.resident())
            self.minutes[-1].descriptors.append(self._server.descriptors() - ours)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def configs_in(work: Path) -> dict[str, Path]:
    """A copy of each task's config, under the name of the task."""
    made = {}
    for name, task in TASKS.items():
        config = yaml.safe_load((ROOT / task.config).read_text())
        config["trt_llm"].setdefault("runtime", {})["served_model_name"] = name
        made[name] = work / f"life-{name}.json"
        made[name].write_text(json.dumps(config))
    return made


async def measure(server: Tree, configs: dict[str, Path], run: Run) -> tuple[Life, float]:
    """The run, and the rate in requests per second."""
    rng, targets = np.random.default_rng(run.seed), []
    for task in TASKS.values():
        http1, http2 = Http1(server.port), Http2(server.port)
        traffic = await Traffic.learn(task, http1, texts_of_all_lengths(rng, INPUTS))
        targets.append(Target(server, traffic, http1, http2, {}))
    life = Life(targets, run.limit, run.seed, configs)
    rate = OVERLOAD * await life.capacity(run.calibrate)
    click.echo(f"{rate:.1f} requests per second will be sent, twice as many as are answered")
    disturbing = asyncio.create_task(life.disturb())
    await life.run(rate, run.minutes)
    disturbing.cancel()
    for target in targets:
        target.http1.close()
        target.http2.close()
    return life, rate


def violations(life: Life, tracebacks: int, status: int) -> list[str]:
    total = life.total()
    found = [f"{total[end]} {end}; the first: {life.examples[end]}" for end in BAD if end in life.examples]
    if life.unasked:
        found.append(f"statuses that nobody asked for: {listed(life.unasked)}")
    if life.grown and life.grown > GROWTH:
        found.append(f"memory grew to {life.grown:.3f} of its size after the first cycle")
    if life.kept > SPARE:
        found.append(f"{life.kept:.0f} descriptors more than after the first cycle")
    if tracebacks:
        found.append(f"{tracebacks} tracebacks in the log")
    return [*found, f"exit status {status} after SIGTERM"] if status else found


@for_minutes
def main(run: Run) -> None:
    """Models that come and go under load; the exit status is 1 where the server broke a rule."""
    run.work.mkdir(parents=True, exist_ok=True)
    configs = configs_in(run.work.absolute())
    first, *others = map(str, configs.values())
    more = [word for config in others for word in ("--config", config)]
    with ExitStack() as stack:
        server = stack.enter_context(served(first, *more, *run.flags, log=run.work / "life.log"))
        life, rate = uvloop.run(measure(server, configs, run))
        # The death of an engine is logged with one, too.
        told = server.log.read_text().count("engine failed on")
        tracebacks, status = max(0, server.tracebacks() - told), stop(server)
    found = violations(life, tracebacks, status)
    click.echo("\n".join(life.acts))
    click.echo(f"in all: {listed(life.total())}; memory: {life.grown or float('nan'):.3f}")
    finish(found, life.minutes, {"rate": rate, "acts": life.acts}, run.json_file)


if __name__ == "__main__":
    main()
