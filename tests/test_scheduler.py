"""Threads around a queue and an engine: everything is answered, once, whatever fails. Every wait has a limit."""

import random
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from bei import slots
from bei.batching import Entry, Limits, Queue, Request
from bei.engines.base import Batch, EngineFacts
from bei.errors import EngineDied, EngineFailed, Expired, NotReady, Overloaded
from bei.scheduler import _FIRST_BATCH, Scheduler
from bei.slots import Slots
from tests.support.waiting import LIMIT


class StubEngine:
    """Rows are the sum of the ids; it blocks, fails or gives NaN when told to."""

    fault = None

    def __init__(self, has_brief_slot: bool = False):
        self.facts = EngineFacts(
            name="stub",
            device="cpu",
            precision="fp32",
            reason="a test",
            streams=1,
            token_budget=1 << 20,
            has_brief_slot=has_brief_slot,
        )
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.at_once, self.most_at_once = 0, 0
        self.batches: list[int] = []
        self.seen: list[int] = []
        self._lock = threading.Lock()

    def run(self, batch: Batch) -> np.ndarray:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.release()
        assert self.go.wait(LIMIT)
        with self._lock:
            self.at_once -= 1
        self.batches.append(len(batch))
        self.seen += batch.input_ids.tolist()
        sums = np.add.reduceat(batch.input_ids, batch.cu_seqlens[:-1]).astype(np.float32)
        if (sums == 666).any():
            raise RuntimeError("secret detail")
        if (sums == 555).any():
            raise EngineDied("the engine's process died while this ran")
        if (sums == 444).any():
            raise NotReady("the engine ends")
        if (sums == 999).any():
            raise SystemExit
        return np.where(sums == 777, np.nan, sums)[:, None]


class Inbox:
    """The delivered outcomes, by index."""

    def __init__(self):
        self.outcomes, self._changed = {}, threading.Condition()

    def __call__(self, outcomes):
        with self._changed:
            for outcome in outcomes:
                assert outcome.entry.index not in self.outcomes, "delivered twice"
                self.outcomes[outcome.entry.index] = outcome.result
            self._changed.notify_all()

    def wait_for(self, count: int) -> dict:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, LIMIT)
            return self.outcomes


@contextmanager
def running_on(engine: StubEngine):
    inbox = Inbox()
    limits = Limits(100, 4, 1 << 30, size=250, brief_apart=engine.facts.has_brief_slot)
    scheduler = Scheduler(engine, Queue(limits), inbox)
    yield scheduler, engine, inbox
    engine.go.set()
    scheduler.close(LIMIT)


@pytest.fixture
def running():
    with running_on(StubEngine()) as parts:
        yield parts


@pytest.fixture
def running_beside():
    with running_on(StubEngine(has_brief_slot=True)) as parts:
        yield parts


def entries(values: list[int], first: int = 0, request: Request | None = None) -> list[Entry]:
    request = request or Request()
    return [Entry(request, first + i, [value]) for i, value in enumerate(values)]


def test_every_entry_gets_its_own_row(running):
    scheduler, _, inbox = running
    scheduler.submit(entries(list(range(50))))
    assert {i: float(row[0]) for i, row in inbox.wait_for(50).items()} == {i: float(i) for i in range(50)}


def test_an_instant_engine_runs_what_is_brief_and_alone_where_it_is_submitted():
    engine = StubEngine()
    engine.facts = replace(engine.facts, is_instant=True)
    threads, run = [], engine.run
    engine.run = lambda batch: threads.append(threading.current_thread().name) or run(batch)
    with running_on(engine) as (scheduler, _, inbox):
        here = threading.current_thread().name
        scheduler.submit(entries([1, 2]))
        assert {i: float(row[0]) for i, row in inbox.outcomes.items()} == {0: 1.0, 1: 2.0}, "answered before it returns"
        assert threads == [here]
        scheduler.submit(entries([3, 4, 5, 6, 7], first=2))  # one more than a batch has
        scheduler.submit([Entry(Request(), 7, [1] * 129)])
        scheduler.submit(entries([8], first=8, request=Request(is_background=True)))
        inbox.wait_for(9)
        assert (threads[0], threads[1], here in threads[2:]) == (here, here, False)
        engine.go.clear()
        scheduler.submit([Entry(Request(), 9, [1] * 130)])
        assert engine.entered.acquire(timeout=LIMIT)
        scheduler.submit(entries([9], first=10))  # while another one runs
        assert 10 not in inbox.outcomes
        engine.go.set()
        inbox.wait_for(11)
        assert here not in threads[2:]


def test_one_runs_while_one_is_prepared_and_the_rest_gathers(running):
    scheduler, engine, inbox = running
    engine.go.clear()
    scheduler.submit(entries([1]))
    assert engine.entered.acquire(timeout=LIMIT)
    for i in range(1, 7):
        scheduler.submit(entries([1], first=i))
    engine.go.set()
    inbox.wait_for(7)
    assert engine.most_at_once == 1
    assert len(engine.batches) <= 4  # one running, one prepared, then batches of the gathered entries


def test_what_is_prepared_runs_next(running, monkeypatch):
    """A thread whose batch has ended does not overtake a waiting one; the time to wake up is zero here."""
    monkeypatch.setattr(slots, "_OVERTAKEN", 0.0)
    scheduler, engine, inbox = running
    run, rng = engine.run, random.Random(0)
    engine.run = lambda batch: time.sleep(rng.choice([0, 0.001])) or run(batch)  # as batches take long, or not
    for index in range(200):
        scheduler.submit(entries([index], first=index))
    inbox.wait_for(200)
    late = max(place - value for place, value in enumerate(engine.seen))
    assert late <= 2, "of two threads"


def test_an_engine_failure_fails_its_batch_and_no_other(running):
    scheduler, _, inbox = running
    scheduler.submit(entries([666, 1]))
    outcomes = inbox.wait_for(2)
    assert all(isinstance(result, EngineFailed) for result in outcomes.values())
    assert "secret detail" not in outcomes[0].message
    assert scheduler.failing
    scheduler.submit(entries([5], first=2))
    assert inbox.wait_for(3)[2] == 5
    assert not scheduler.failing


def submit_together(scheduler, engine, values):
    """Entries from number 1 on, which queue behind number 0 and then are one batch."""
    engine.go.clear()
    scheduler.submit(entries([1]))
    assert engine.entered.acquire(timeout=LIMIT)
    for i, value in enumerate(values, start=1):
        scheduler.submit(entries([value], first=i))
    engine.go.set()


def test_a_batch_that_fails_is_halved_until_what_breaks_it_is_alone(running):
    scheduler, engine, inbox = running
    submit_together(scheduler, engine, [2, 666, 3, 4])
    outcomes = inbox.wait_for(5)
    assert isinstance(outcomes[2], EngineFailed)
    assert [float(outcomes[i][0]) for i in (0, 1, 3, 4)] == [1, 2, 3, 4]
    assert not scheduler.failing


def test_what_ended_the_engine_s_process_is_not_tried_again(running):
    scheduler, engine, inbox = running
    submit_together(scheduler, engine, [2, 555, 3])
    inbox.wait_for(4)
    assert isinstance(inbox.outcomes[2], EngineFailed)
    assert engine.seen.count(555) == 1


def test_an_engine_that_ends_gets_no_halves(running, caplog):
    """Its requests are told that it ends, and the log has no trace of what is known."""
    scheduler, engine, inbox = running
    submit_together(scheduler, engine, [2, 444, 3])
    inbox.wait_for(4)
    assert {type(inbox.outcomes[i]) for i in (2, 3)} == {NotReady}
    assert engine.seen.count(444) == 1
    assert [record.exc_info for record in caplog.records if "engine failed" in record.message] == [None]


def test_a_brief_request_runs_beside_the_batches_of_all_streams(running_beside):
    scheduler, engine, inbox = running_beside
    engine.go.clear()
    scheduler.submit(entries([1] * 200, first=10))  # a bulk
    assert engine.entered.acquire(timeout=LIMIT)
    scheduler.submit(entries([5]))
    assert engine.entered.acquire(timeout=LIMIT)
    assert engine.at_once == 2
    engine.go.set()
    assert inbox.wait_for(201)[0] == 5


def test_retry_after_is_when_the_queue_will_have_run(running):
    scheduler, engine, inbox = running
    scheduler.submit(entries([1]))
    inbox.wait_for(1)
    engine.go.clear()
    scheduler.submit(entries([1] * 60, first=1))
    scheduler._speed = 2.0
    with pytest.raises(Overloaded) as refused:
        scheduler.submit(entries([1] * 200, first=100))
    assert 20 <= int(refused.value.headers["retry-after"]) <= 30


def test_no_more_is_admitted_than_runs_in_good_time():
    engine, inbox = StubEngine(), Inbox()
    scheduler = Scheduler(engine, Queue(Limits(4, 4, 1 << 30)), inbox, max_seconds=10.0)
    scheduler._learn(4, 0.5)  # 8 tokens per second
    engine.go.clear()
    scheduler.submit(entries([1]))
    assert engine.entered.acquire(timeout=LIMIT)
    scheduler.submit(entries([1] * 500, first=1))  # alone, whatever its size
    with pytest.raises(Overloaded) as refused:
        scheduler.submit(entries([1] * 129, first=1000))
    assert 50 <= refused.value.retry_after <= 63
    scheduler._learn(1, 100.0)  # too small to tell
    assert scheduler._speed == 8
    engine.go.set()
    scheduler.close(LIMIT)


def test_before_the_first_batch_no_more_is_admitted_than_usual_engines_run_in_good_time():
    queue = Queue(Limits(100, 4, 1 << 30))
    scheduler = Scheduler(StubEngine(), queue, Inbox(), max_seconds=10.0)
    assert queue.most_tokens == 10.0 * 100 / _FIRST_BATCH
    assert Scheduler(StubEngine(), Queue(Limits(100, 4, 777)), Inbox())._queue.most_tokens == 777
    scheduler._learn(100, 0.1)
    assert queue.most_tokens == 10_000
    scheduler.close(LIMIT)


def test_an_engine_gets_the_part_of_the_device_that_others_left_lately():
    slots, queue = Slots(1), Queue(Limits(100, 4, 1 << 30))
    share, other = slots.share(1), slots.share(1)
    scheduler = Scheduler(StubEngine(), queue, Inbox(), max_seconds=10.0, share=share)
    scheduler._learn(100, 0.1)
    share.batches, other.batches = 1, 1
    scheduler._learn(100, 0.1)
    assert queue.most_tokens == 9_500, "one batch of two busy engines says little"
    for _ in range(100):
        scheduler._learn(100, 0.1)
    assert 5_000 <= queue.most_tokens < 5_010
    queue.push(entries([1] * 1000))
    assert scheduler.drains_in() == pytest.approx(2.0, rel=0.01)
    scheduler.close(LIMIT)


def test_a_first_batch_that_was_slow_is_made_up_for():
    queue = Queue(Limits(1000, 4, 1 << 30))
    scheduler = Scheduler(StubEngine(), queue, Inbox(), max_seconds=10.0)
    scheduler._learn(1000, 1000.0)
    assert queue.most_tokens < 1000
    for _ in range(200):  # batches of the waiting entries, 100 tokens per second
        scheduler._learn(min(1000, int(queue.most_tokens)), min(1000, int(queue.most_tokens)) / 100)
    assert queue.most_tokens > 900
    scheduler.close(LIMIT)


def test_a_row_that_is_not_finite_fails_alone(running):
    scheduler, _, inbox = running
    scheduler.submit(entries([1, 777, 3]))
    outcomes = inbox.wait_for(3)
    assert isinstance(outcomes[1], EngineFailed)
    assert "not finite" in outcomes[1].message
    assert (outcomes[0], outcomes[2]) == (1, 3)


def test_a_dead_thread_answers_everybody_and_admits_nobody(running):
    scheduler, _, inbox = running
    scheduler.submit(entries([999, *[1] * 20]))
    outcomes = inbox.wait_for(21)
    assert isinstance(outcomes[0], EngineFailed)
    assert scheduler.failing
    with pytest.raises(NotReady):
        scheduler.submit(entries([1], first=30))


def test_what_expires_in_the_queue_is_told_so(running):
    scheduler, _, inbox = running
    scheduler.submit(entries([1], request=Request(deadline=0.0)))
    assert isinstance(inbox.wait_for(1)[0], Expired)


def test_close_finishes_what_is_queued():
    engine, inbox = StubEngine(), Inbox()
    scheduler = Scheduler(engine, Queue(Limits(100, 4, 1 << 30)), inbox)
    engine.go.clear()
    scheduler.submit(entries(list(range(30))))
    closing = threading.Thread(target=scheduler.close, args=(LIMIT,))
    closing.start()
    engine.go.set()
    closing.join(LIMIT)
    assert not closing.is_alive()
    assert len(inbox.outcomes) == 30


def test_close_is_bounded_when_the_engine_hangs():
    engine, inbox = StubEngine(), Inbox()
    scheduler = Scheduler(engine, Queue(Limits(100, 4, 1 << 30)), inbox)
    engine.go.clear()
    scheduler.submit(entries([1]))
    assert engine.entered.acquire(timeout=LIMIT)
    scheduler.submit(entries([2] * 20, first=1))
    scheduler.close(timeout=0.05)
    waiting = [result for result in inbox.outcomes.values() if isinstance(result, NotReady)]
    assert len(waiting) >= 16  # all but the running and the prepared ones
    engine.go.set()
