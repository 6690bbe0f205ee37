"""Waiting with a limit: for a condition, and for a coroutine. No other file of tests sleeps without its reason."""

import asyncio
import time
from collections.abc import Callable

LIMIT = 30.0  # seconds of any wait of these tests
_LOOK = 0.01  # seconds between two looks


def wait_until(true: Callable[[], object], seconds: float = LIMIT, why: Callable[[], str] = str) -> None:
    """Fails with the message of `why` if the condition does not hold in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(_LOOK)


async def until(true: Callable[[], object]) -> None:
    """As `wait_until`, beside the other work of the loop."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(_LOOK)


async def turns() -> None:
    """Everything that is ready on the loop runs, and what that makes ready."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(LIMIT):
            return await coroutine

    return asyncio.run(bounded())
