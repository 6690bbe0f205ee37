"""Slots that the engines of several models share: never more batches than processors, in the order of arrival, and as
many threads as processors."""

import threading
from contextlib import ExitStack
from functools import partial

import pytest

from bei import slots
from bei.slots import Share, Slots
from tests.support.waiting import wait_until


class Batches:
    """Batches in threads: each holds its slot until it is told to end."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.begun: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, share: Share, *, is_long: bool = True) -> None:
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._run, args=(name, share, is_long)))
        waiting = len(share.slots._waiting) + len(self.running)
        self._threads[-1].start()
        wait_until(lambda: len(share.slots._waiting) + len(self.running) > waiting)

    def _run(self, name: str, share: Share, is_long: bool) -> None:
        with share.slots.slot(share, is_long=is_long, may_be_brief=not is_long and share.has_brief_slot):
            self.running.append(name)
            self.begun.append(name)
            self._ends[name].wait(30)
            self.running.remove(name)

    def end(self, name: str) -> None:
        self._ends[name].set()
        wait_until(lambda: name not in self.running)

    def stop(self) -> None:
        for event in self._ends.values():
            event.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def batches(monkeypatch):
    monkeypatch.setattr(slots, "_OVERTAKEN", 0.0)
    with ExitStack() as stack:
        made = Batches()
        stack.callback(made.stop)
        yield made


def test_two_models_never_run_more_batches_than_there_are_processors(batches):
    processors = Slots(2)
    first, second = processors.share(2), processors.share(2)
    for name, share in (("a1", first), ("a2", first), ("b1", second), ("a3", first), ("b2", second)):
        batches.start(name, share)
    assert batches.running == ["a1", "a2"]
    batches.end("a1")
    wait_until(lambda: "b1" in batches.running)
    assert sorted(batches.running) == ["a2", "b1"]
    batches.end("a2")
    wait_until(lambda: "a3" in batches.running)
    batches.end("b1")
    wait_until(lambda: "b2" in batches.running)
    assert batches.begun == ["a1", "a2", "b1", "a3", "b2"]
    assert first.pool.busy == 2


def test_a_batch_of_all_processors_waits_for_them_and_is_not_overtaken(batches):
    processors = Slots(2)
    one, all_of_them = processors.share(2, cost=1), processors.share(1, cost=8)
    batches.start("one", one)
    batches.start("all", all_of_them)
    batches.start("later", one)
    assert batches.running == ["one"]
    batches.end("one")
    wait_until(lambda: batches.running == ["all"])
    batches.end("all")
    wait_until(lambda: batches.running == ["later"])


def test_a_batch_that_came_a_moment_later_need_not_wait_until_the_first_wakes_up(batches, monkeypatch):
    monkeypatch.setattr(slots, "_OVERTAKEN", 60.0)
    processors = Slots(2)
    one, all_of_them = processors.share(2), processors.share(1, cost=2)
    for name, share in (("one", one), ("all", all_of_them), ("later", one)):
        batches.start(name, share)
    assert batches.running == ["one", "later"]


def test_a_model_whose_streams_are_taken_does_not_hold_up_another(batches):
    processors = Slots(3)
    narrow, wide = processors.share(1), processors.share(3)
    for name, share in (("n1", narrow), ("n2", narrow), ("w1", wide)):
        batches.start(name, share)
    assert batches.running == ["n1", "w1"]


def test_a_brief_batch_runs_beside_the_long_ones_of_another_model(batches):
    processors = Slots(1)
    bulk, other = processors.share(1), processors.share(1, has_brief_slot=True)
    batches.start("long", bulk)
    batches.start("brief", other, is_long=False)
    batches.start("second brief", other, is_long=False)
    batches.start("long of the other", other)
    assert batches.running == ["long", "brief"]
    batches.end("brief")
    wait_until(lambda: batches.running == ["long", "second brief"])


def test_beside_brief_batches_there_is_no_brief_slot(batches):
    """Behind other brief requests a request is better off in a batch with them."""
    processors = Slots(1)
    share = processors.share(1, has_brief_slot=True)
    batches.start("a", share, is_long=False)
    batches.start("b", share, is_long=False)
    assert batches.running == ["a"]


def test_busy_counts_the_models_with_work(batches):
    processors = Slots(2)
    first, second = processors.share(2), processors.share(2)
    assert first.pool.busy == 1
    batches.start("a", first)
    assert first.pool.busy == 1
    batches.start("b", second)
    assert first.pool.busy == 2
    batches.end("a")
    wait_until(lambda: first.pool.busy == 1)


def test_models_on_processors_of_their_own_do_not_wait_for_each_other(batches):
    processors = Slots(2)
    first, second = processors.share(1, processors=frozenset((0,))), processors.share(1, processors=frozenset((1,)))
    for name, share in (("a1", first), ("a2", first), ("b1", second)):
        batches.start(name, share)
    assert batches.running == ["a1", "b1"]
    assert (first.pool.busy, first.pool.long) == (1, 1)
    all_of_them = processors.share(2)  # on any processor, and so in the way of both
    assert first.pool is second.pool is all_of_them.pool
    assert first.pool.busy == 2
    batches.start("c1", all_of_them)
    assert batches.running == ["a1", "b1"]
    batches.end("b1")
    wait_until(lambda: batches.running == ["a1", "c1"])
    batches.end("a1")
    wait_until(lambda: batches.running == ["c1", "a2"])
    processors.leave(all_of_them)
    assert first.pool is not second.pool


def test_models_that_name_the_same_processors_share_them(batches):
    processors = Slots(8)
    first, second = (processors.share(2, processors=frozenset((0, 1))) for _ in range(2))
    for name, share in (("a1", first), ("a2", first), ("b1", second)):
        batches.start(name, share)
    assert batches.running == ["a1", "a2"]
    batches.end("a1")
    wait_until(lambda: batches.running == ["a2", "b1"])


class Engines:
    """The threads that each of some engines may run, as it was told last."""

    def __init__(self, processors: Slots, *streams: int, has_brief_slot: bool = False):
        self.threads = [0] * len(streams)
        self.shares = [
            processors.share(count, has_brief_slot=has_brief_slot, allow=partial(self.threads.__setitem__, place))
            for place, count in enumerate(streams)
        ]


def test_an_engine_alone_may_run_a_thread_on_each_processor(batches):
    engines = Engines(Slots(4), 4, 4)
    for name in ("a1", "a2"):
        batches.start(name, engines.shares[0])
        assert engines.threads == [4, 0]


def test_a_batch_takes_a_slot_back_that_was_lent_and_does_not_wait(batches):
    engines = Engines(Slots(2), 2, 2)
    batches.start("a1", engines.shares[0])
    batches.start("b1", engines.shares[1])
    assert batches.running == ["a1", "b1"]
    assert engines.threads == [1, 1]
    batches.end("a1")
    wait_until(lambda: engines.threads[1] == 2)


def test_free_slots_are_divided_among_the_engines_that_run_batches(batches):
    engines = Engines(Slots(7), 7, 7, 7)
    for name, place, helpers in (
        ("a1", 0, [6, 0, 0]),
        ("a2", 0, [5, 0, 0]),
        ("b1", 1, [2, 2, 0]),
        ("c1", 2, [1, 1, 1]),
        ("c2", 2, [0, 1, 1]),
    ):
        batches.start(name, engines.shares[place])
        found = [threads - share.running for threads, share in zip(engines.threads, engines.shares, strict=True)]
        assert sorted(found) == sorted(helpers)
    for name in ("c1", "c2"):
        batches.end(name)
    wait_until(lambda: engines.threads[:2] == [4, 3])


def test_a_brief_batch_beside_long_ones_has_no_helpers_but_a_thread(batches):
    engines = Engines(Slots(2), 2, 2, has_brief_slot=True)
    for name in ("a1", "a2"):
        batches.start(name, engines.shares[0])
    batches.start("b", engines.shares[1], is_long=False)
    assert batches.running == ["a1", "a2", "b"]
    assert engines.threads == [2, 1]
    batches.end("a1")
    wait_until(lambda: engines.threads == [1, 1])
    batches.end("b")
    wait_until(lambda: engines.threads[0] == 2)


def test_engines_on_processors_of_their_own_lend_each_other_none(batches):
    processors, threads = Slots(8), [0, 0]
    for place, numbers in enumerate((range(3), range(3, 8))):
        allow = partial(threads.__setitem__, place)
        share = processors.share(len(numbers), processors=frozenset(numbers), allow=allow)
        batches.start(f"{place}", share)
    assert threads == [3, 5]
