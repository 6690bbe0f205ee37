"""A loop that never waits rests, so that the threads of the engine get the interpreter's lock."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from bei.server import rests
from bei.server.listen import _Calls
from tests.support.waiting import wait_until

BUSY = 0.05  # seconds


async def answered(scope: Any, receive: Any, send: Any) -> None:
    pass


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(rests.time, "sleep", seconds.append)
    return seconds


def calls_with(pause: Callable[[], Awaitable[None]], seconds: float = BUSY) -> int:
    """Calls an application one time after another, with a pause between two calls; the number of the calls."""

    async def run() -> int:
        calls, number = _Calls(answered), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await calls({}, None, None)
            await pause()
            number += 1
        return number

    return uvloop.run(run())


async def pausing() -> None:
    await asyncio.sleep(rests._EVERY / 2)  # the loop waits so long


def test_a_loop_that_always_has_work_rests(slept):
    rounds: list[int] = []
    wait_until(lambda: rounds.append(calls_with(lambda: asyncio.sleep(0))) or slept)
    assert len(slept) <= len(rounds) * BUSY / rests._EVERY
    assert len(slept) < sum(rounds)
    assert set(slept) == {rests._REST}


def test_a_loop_that_waits_needs_no_rest(slept):
    """It may look as if it had not waited, once this process gets no processor for as long as it would have waited."""
    wait_until(lambda: slept.clear() or (calls_with(pausing) > 1 and not slept))


def test_without_calls_nothing_looks(slept):
    async def spin() -> None:
        until = time.monotonic() + BUSY
        while time.monotonic() < until:
            await asyncio.sleep(0)

    uvloop.run(spin())
    assert not slept


def test_where_waits_are_not_counted_each_look_ends_in_a_rest(slept, monkeypatch):
    monkeypatch.setattr(rests, "_THIS_THREAD", None)
    wait_until(lambda: calls_with(pausing) and slept)
