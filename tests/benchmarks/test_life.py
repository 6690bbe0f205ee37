"""The rules of benchmarks.life about its own faults."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import life

DIED = "12:00:00 ERROR the engine's process died by SIGKILL; starting another model={} device=any\n"
BACK = "12:00:01 INFO the engine is back after 0.50 s model={} device=any\n"


@pytest.fixture
def run(tmp_path, monkeypatch) -> life.Life:
    """A run on two models, of which a kill hits the second."""
    log = tmp_path / "log"
    log.write_text(DIED.format("first") + BACK.format("first"))
    server = SimpleNamespace(log=log, pids=lambda: [1, 2])
    targets = [SimpleNamespace(server=server, http1=None) for _ in range(2)]
    made = life.Life(targets, 1.0, 0, {"first": Path("a"), "second": Path("b")})
    monkeypatch.setattr(life, "command", lambda pid: "bei.engines.child")
    monkeypatch.setattr(os, "kill", lambda pid, number: log.write_text(log.read_text() + DIED.format("second")))
    return made


def test_only_the_killed_model_may_refuse(run):
    async def found() -> str:
        killing = asyncio.create_task(run.kill(""))
        await asyncio.sleep(0)
        for target in run._targets:  # before it is known whose engine it was
            await run._ask("plain", target)
        told = await killing
        for target in run._targets:
            await run._ask("plain", target)
        return told

    async def refused(*_: object) -> tuple[str, str]:
        return "503", "503 the engine is restarting"

    run._result = refused
    run.minutes.append(life.Minute())
    assert asyncio.run(found()) == "killed an engine of second"
    assert run.unasked == {"503 of first": 2}
    assert run.minutes[-1].ends == {"fault": 2, "unasked": 2}


def test_descriptors_that_stay_are_a_violation(run):
    """Of each minute some are those of an engine that is being replaced."""
    for minute in range(30):
        run.minutes.append(life.Minute(descriptors=[90, 91 + minute % 3, 150]))
    assert life.violations(run, 0, 0) == []
    for minute in range(30):
        run.minutes.append(life.Minute(descriptors=[90, 91 + 2 * minute, 150]))
    assert life.violations(run, 0, 0) == ["57 descriptors more than after the first cycle"]
