"""Work in threads, for who waits on an event loop: it counts as theirs until it ends, and ends soon when they leave."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

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
    """What `work` gives, from a thread of the pool. Whoever is cancelled still waits for its end: what was counted for
    it, it holds until then."""
    context, unwanted = copy_context(), threading.Event()
    context.run(_unwanted.set, unwanted)
    job = pool.submit(context.run, work)
    ended = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        unwanted.set()
        job.cancel()  # unless it runs
        await _ended(ended)
        raise
    finally:
        del job, ended  # an error in them holds this frame: a ring, with all that the work was about


async def _ended(future: asyncio.Future[Any]) -> None:
    """Whatever becomes of it, and however often whoever waits is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # asyncio complains of one that nobody has looked at
