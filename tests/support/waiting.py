"""Waiting with a limit: for a condition, for a coroutine, and an engine that waits for its test."""

import asyncio
import threading
import time
from collections.abc import Callable

from bei.engines.null import NullEngine

LIMIT = 30.0  # seconds of any wait of these tests


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate(NullEngine):
    """The null engine, which waits for `go` and fails on the word of `poison`."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.poison = -1

    def run(self, batch):
        self.entered.set()
        assert self.go.wait(LIMIT)
        if self.poison in batch.input_ids:
            raise RuntimeError("poisoned")
        return super().run(batch)


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(LIMIT):
            return await coroutine

    return asyncio.run(bounded())
