"""A worker's scheduler and its session over a socket: the same answers, refusals and endings as the real
scheduler's."""

import asyncio
import socket
import threading
from dataclasses import make_dataclass

import numpy as np
import pytest

from bei import wire
from bei.batching import Entry, Request
from bei.engines.null import NullEngine
from bei.errors import EngineFailed, NotReady, Overloaded
from bei.messages import FROM_WORKER, Submit
from bei.remote import RemoteEngine, RemoteScheduler, WorkerSession
from bei.serving.answers import Options
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.gate import Gate
from tests.support.task_models import classifier, splade
from tests.support.waiting import run, until, wait_until

LIMIT = 20.0


@pytest.fixture
def join():
    """join(service): a worker of it, and an event that is set when it loses its connection."""
    workers = []

    def make(service: Service) -> tuple[Service, threading.Event]:
        ours, theirs = socket.socketpair()
        lost, engine = threading.Event(), RemoteEngine(service.model.engine.facts)
        session = WorkerSession(ours, service.model.scheduler, service.model.engine, on_joined=WorkerSession.open)
        worker = Service(Settings.load(tiny_config(), environ={}))
        scheduler = RemoteScheduler(theirs, engine, on_loss=lost.set)
        worker.join(service.model.checkpoint, engine, scheduler, scheduler.wait_until_open)
        worker.session = session
        workers.append(worker)
        return worker, lost

    yield make
    for worker in workers:
        worker.close()


TEXTS = ["the cat", "a big dog", "it", "the old red tree"]


def test_answers_are_those_of_the_service(start_service, join):
    service = start_service()
    worker, _ = join(service)
    np.testing.assert_array_equal(run(worker.model.embed(TEXTS)).rows, run(service.model.embed(TEXTS)).rows)
    for ours, theirs in zip(
        run(worker.model.embed_tokens(TEXTS)).rows, run(service.model.embed_tokens(TEXTS)).rows, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    usage = run(worker.model.embed(TEXTS)).usage
    assert usage.tokens == run(service.model.embed(TEXTS)).usage.tokens
    assert usage.total >= usage.inference > 0


def test_pairs_and_their_types(tmp_path, start_service, join):
    service = start_service(checkpoint=classifier(tmp_path, ["relevant"]))
    worker, _ = join(service)
    ours, theirs = (run(which.model.rerank("a cat", TEXTS)).rows for which in (worker, service))
    np.testing.assert_array_equal(ours, theirs)


def test_sparse_terms(tmp_path, start_service, join):
    service = start_service(checkpoint=splade(tmp_path))
    worker, _ = join(service)
    for ours, theirs in zip(
        run(worker.model.embed_sparse(TEXTS)).rows, run(service.model.embed_sparse(TEXTS)).rows, strict=True
    ):
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_array_equal(ours.values, theirs.values)


def test_many_requests_of_two_workers_are_kept_apart(start_service, join):
    service = start_service()
    workers = [join(service)[0] for _ in range(2)]
    texts = [f"the {word} cat" for word in ("old", "red", "big")] * 20
    expected = run(service.model.embed(texts)).rows

    async def ask(worker: Service) -> None:
        answers = await asyncio.gather(*(worker.model.embed([text]) for text in texts))
        np.testing.assert_allclose([answer.rows[0] for answer in answers], expected, atol=1e-6)

    threads = [threading.Thread(target=run, args=(ask(worker),)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_what_a_turn_of_the_loop_asks_is_one_message(start_service, join, monkeypatch):
    worker, _ = join(start_service())
    asked, send = [], wire.send

    def spy(channel, *messages):
        if channel is worker.model.scheduler._channel:
            asked.append([type(message) for message in messages])
        send(channel, *messages)

    monkeypatch.setattr(wire, "send", spy)

    async def ask() -> None:
        await asyncio.gather(*(worker.model.embed([text]) for text in TEXTS))

    run(ask())
    assert asked == [[Submit] * len(TEXTS)]


def test_a_loop_that_stands_still_keeps_no_other_waiting(start_service, join):
    worker, _ = join(start_service())
    loop = asyncio.new_event_loop()
    asking = loop.create_task(worker.model.embed(["the cat"]))
    loop.call_soon(loop.stop)  # before its requests are sent
    loop.run_forever()
    assert run(worker.model.embed(["a big dog"])).rows.shape == (1, 48)
    assert loop.run_until_complete(asking).rows.shape == (1, 48)
    loop.close()


@pytest.mark.parametrize("fault", [OSError("no buffers"), MemoryError()])
def test_a_line_on_which_nothing_can_be_sent_is_lost(start_service, join, monkeypatch, fault):
    worker, lost = join(start_service())

    def fail(line, *messages):
        raise fault

    monkeypatch.setattr(wire, "send", fail)

    async def ask() -> None:
        asking = asyncio.ensure_future(worker.model.embed(["the cat"]))
        assert await asyncio.to_thread(lost.wait, LIMIT)
        asking.cancel()

    run(ask())


def test_a_worker_of_another_version_is_left_and_the_log_says_why(start_service, join, caplog):
    worker, lost = join(start_service())
    later = make_dataclass("Drop", ["number", "reason"])
    wire.send(worker.model.scheduler._channel, later(1, "none"))
    assert lost.wait(LIMIT)
    assert "a worker sent a message `Drop` with the unknown field `reason`" in caplog.text


def test_failures_and_refusals_reach_the_worker(tiny_checkpoint, start_service, join):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine, max_queue_tokens=20)
    worker, _ = join(service)
    engine.poison = next(iter(run(worker.model.tokenize(["cat"], add_special_tokens=False))[0])).id
    with pytest.raises(EngineFailed, match="RuntimeError"):
        run(worker.model.embed(["the cat"]))
    assert worker.model.scheduler.failing
    run(worker.model.embed(["the dog"]))
    assert not worker.model.scheduler.failing
    engine.go.clear()

    async def overload() -> None:
        waiting = []
        while True:  # admitted are the running, the prepared and the waiting entries
            waiting.append(asyncio.ensure_future(worker.model.embed(["the dog"] * 3)))
            done, _ = await asyncio.wait(waiting, timeout=0.2)
            if done:
                engine.go.set()
                results = await asyncio.gather(*waiting, return_exceptions=True)
                refused = [result for result in results if isinstance(result, Exception)]
                assert all(isinstance(result, Overloaded) for result in refused)
                assert refused
                return

    run(overload())


def test_a_fault_of_the_engine_is_told(start_service, join):
    service = start_service()
    worker, _ = join(service)
    service.model.engine.fault = "the engine is restarting"
    with pytest.raises(NotReady, match="restarting"):  # refused by the session
        run(worker.model.embed(["a"]))
    worker.session.tell_fault()
    wait_until(lambda: worker.model.engine.fault)
    with pytest.raises(NotReady, match="restarting"):  # known to the worker
        run(worker.model.embed(["a"]))


def test_what_a_worker_no_longer_wants_does_not_run(tiny_checkpoint, start_service, join):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    worker, _ = join(service)
    engine.go.clear()
    engine.entered.clear()

    async def leave() -> None:
        busy = asyncio.ensure_future(worker.model.embed(["the cat"]))
        await asyncio.to_thread(engine.entered.wait, LIMIT)
        bulk = asyncio.ensure_future(worker.model.embed(["the old red tree"] * 1000))
        await until(lambda: len(service.model.scheduler._queue) >= 100)
        bulk.cancel()
        await until(lambda: not len(service.model.scheduler._queue))
        engine.go.set()
        await busy

    run(leave())


def test_a_worker_that_dies_takes_its_requests_along(tiny_checkpoint, start_service, join):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    worker, lost = join(service)
    engine.go.clear()
    for text in ("the cat", "a dog", "the old red tree"):
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(worker.model.embed([text] * 300, options=Options()), 0.2))
    queue = service.model.scheduler._queue
    worker.model.scheduler._channel.shutdown(socket.SHUT_RDWR)
    assert lost.wait(LIMIT)
    wait_until(lambda: not len(queue))
    engine.go.set()
    assert isinstance(service.model.engine, NullEngine)
    run(service.model.embed(["a"]))


def test_marked_tokens_reach_the_queue():
    marked = [np.array([0, 2], np.int32), None, np.array([], np.int32), np.array([1], np.int32)]
    sent = [
        Entry(Request(), i, np.arange(3, dtype=np.int32), row_kind="tokens", marked=of) for i, of in enumerate(marked)
    ]
    ours, theirs = socket.socketpair()
    wire.send(ours, Submit.of(7, sent))
    (received,) = FROM_WORKER.receive(theirs)
    for line in (ours, theirs):
        line.close()
    assert [None if of.marked is None else of.marked.tolist() for of in received.entries(Request())] == [
        *([0, 2], None, [], [1]),
    ]
