"""Work in threads counts until it ends, and ends when nobody waits for it."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from bei.errors import NotReady
from bei.work import Unwanted, check, off_loop
from tests.support.waiting import turns

LIMIT = 20.0


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as made:
        yield made


def test_what_it_gives_and_raises(pool):
    assert asyncio.run(off_loop(pool, lambda: check() or 3)) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(off_loop(pool, lambda: 1 // 0))


def test_threads_that_have_ended_are_told_of():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(NotReady, match="the model was unloaded, or the server stops"):
        asyncio.run(off_loop(pool, lambda: 3))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_whoever_leaves_waits_for_the_end_of_a_piece(pool, times):
    entered, go, pieces = threading.Event(), threading.Event(), []

    def read():
        for piece in range(10):
            check()
            pieces.append(piece)
            entered.set()
            assert go.wait(LIMIT)

    async def scenario():
        asking = asyncio.ensure_future(off_loop(pool, read))
        await asyncio.to_thread(entered.wait, LIMIT)
        for _ in range(times):
            asking.cancel()
            await turns()
        assert not asking.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scenario())
    assert pieces == [0]


def test_what_has_not_begun_never_does(pool):
    entered, go = threading.Event(), threading.Event()
    begun = []

    async def scenario():
        first = asyncio.ensure_future(off_loop(pool, lambda: entered.set() or go.wait(LIMIT)))
        second = asyncio.ensure_future(off_loop(pool, lambda: begun.append(1)))
        await asyncio.to_thread(entered.wait, LIMIT)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        assert await first

    asyncio.run(scenario())
    assert not begun


def test_the_error_of_work_that_nobody_wants_is_seen_by_nobody(pool, caplog):
    entered, go = threading.Event(), threading.Event()

    def fail():
        entered.set()
        assert go.wait(LIMIT)
        check()

    async def scenario():
        asking = asyncio.ensure_future(off_loop(pool, fail))
        await asyncio.to_thread(entered.wait, LIMIT)
        asking.cancel()
        await turns()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scenario())
    assert not caplog.records
    assert issubclass(Unwanted, Exception)


@pytest.mark.parametrize("end", ["answered", "failed", "cancelled"])
def test_what_work_holds_goes_with_it(pool, end):
    """No reference cycle keeps it until a garbage collection."""
    entered, go = threading.Event(), threading.Event()

    class Body:
        pass

    def work(body):
        entered.set()
        assert go.wait(LIMIT)
        if end == "failed":
            raise ValueError

    async def ask() -> weakref.ref:
        body = Body()
        asking = asyncio.ensure_future(off_loop(pool, partial(work, body)))
        await asyncio.to_thread(entered.wait, LIMIT)
        if end == "cancelled":
            asking.cancel()
            await asyncio.sleep(0)
        go.set()
        with suppress(ValueError, asyncio.CancelledError):
            await asking
        del asking  # it holds its error, whose traceback refers to this frame
        return weakref.ref(body)

    gc.collect()
    gc.disable()
    try:
        ref = asyncio.run(ask())
        pool.submit(int).result(LIMIT)  # its thread forgets what it ran last
        assert ref() is None
    finally:
        gc.enable()
