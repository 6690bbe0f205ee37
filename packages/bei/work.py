"""Work in threads, for who waits on an event loop: it counts as theirs until it ends, and ends soon when they leave."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TypeVar

R = TypeVar("R")

_unwanted: ContextVar[threading.Event | None] = ContextVar("unwanted", default=None)


class Unwanted(Exception):
    """Nobody waits for this work any more."""


def check() -> None:
    """For work to call between its pieces. Raises Unwanted once whoever waited has left."""
    event = _unwanted.get()
    if event is not None and event.is_set():
        raise Unwanted


async def off_loop(pool: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    """What `work` gives, from a thread of the pool. Whoever is cancelled first waits until the work has ended, for it
    holds what was counted for it; whoever is cancelled twice does not."""
    context, unwanted = copy_context(), threading.Event()
    context.run(_unwanted.set, unwanted)
    job = pool.submit(context.run, work)
    ended = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        unwanted.set()
        if not job.cancel():
            await asyncio.wait([ended])
            ended.cancelled() or ended.exception()  # asyncio complains of an error that nobody has seen
        raise
