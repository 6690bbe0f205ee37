"""Work in threads for tasks of an event loop. It counts as the request's until it ends, and ends soon after the client
leaves."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from bei.errors import ENDING, Ended

R = TypeVar("R")

_unwanted: ContextVar[threading.Event | None] = ContextVar("unwanted", default=None)


class Unwanted(Exception):
    """Nobody waits for this work any more."""


def check() -> None:
    """Called by work between its pieces. Raises Unwanted once the waiting task has been cancelled."""
    event = _unwanted.get()
    if event is not None and event.is_set():
        raise Unwanted


async def off_loop(pool: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    """The result of `work`, run in a thread of the pool. A cancelled task still waits for its end, and holds its bytes
    until then. Raises Ended if the pool has ended."""
    context, unwanted = copy_context(), threading.Event()
    context.run(_unwanted.set, unwanted)
    try:
        job = pool.submit(context.run, work)
    except RuntimeError:
        raise Ended(ENDING) from None
    ended = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        unwanted.set()
        job.cancel()  # unless it runs already
        await _ended(ended)
        raise
    finally:
        del job, ended  # an error in them refers to this frame: a cycle that would keep all data of the work


async def _ended(future: asyncio.Future[Any]) -> None:
    """Waits for the end, whatever the result, however often the waiting task is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # otherwise asyncio complains that nobody retrieved the exception
