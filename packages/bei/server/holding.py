"""The bytes that the calls of one connection hold; a call begins when there is room for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_MOST = 1 << 20  # bytes


class Holding:
    """Counts the bytes of request heads, and of answers being sent."""

    def __init__(self) -> None:
        self._held, self._line, self._relieved = 0, asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def call(self, size: int) -> AsyncIterator[None]:
        """The scope of a call that holds `size` bytes; it waits until other calls leave room."""
        if self._held and self._held + size > _MOST:
            async with self._line:
                while self._held and self._held + size > _MOST:
                    self._relieved.clear()
                    await self._relieved.wait()
        self.add(size)
        try:
            yield
        finally:
            self.add(-size)

    def add(self, size: int) -> None:
        """Adds bytes, whether there is room or not. A negative size releases bytes."""
        self._held += size
        if size < 0:
            self._relieved.set()
