"""The async interface: admission and answers; no request is forgotten."""

import asyncio
import contextvars
import gc
import logging
import random
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei.batching import Request
from bei.checkpoint.texts import Prompts
from bei.engines import choice
from bei.engines.null import NullEngine
from bei.errors import (
    Empty,
    EngineFailed,
    Error,
    Expired,
    Invalid,
    NotReady,
    Overloaded,
    SetupError,
    TooLarge,
    Untokenizable,
)
from bei.serving.answers import Options
from bei.serving.service import Service
from bei.serving.texts import TextReader
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.gate import Gate
from tests.support.waiting import LIMIT, run, turns, until


def test_rows_are_in_order_and_do_not_depend_on_the_batch(start_service):
    service = start_service()
    texts = ["the cat", "a big dog", "it", "the old red tree"]
    together = run(service.model.embed(texts))
    for text, row in zip(texts, together.rows, strict=True):
        np.testing.assert_allclose(run(service.model.embed([text])).rows[0], row, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together.rows, axis=1), 1, atol=1e-6)
    assert together.usage.tokens == sum(2 + len(text.split()) for text in texts)
    assert together.usage.characters == sum(map(len, texts))
    assert together.usage.total >= together.usage.inference > 0


def test_token_states_and_similarity(start_service):
    service = start_service()
    states = run(service.model.embed_tokens(["the cat", "it"])).rows
    assert [rows.shape for rows in states] == [(4, 48), (3, 48)]
    cosines = run(service.model.similarity("the cat", ["a dog", "the cat"])).rows
    assert cosines[1] == pytest.approx(1, abs=1e-6)
    assert cosines[0] < 0.999


def test_what_is_refused(start_service):
    service = start_service(max_client_batch_size=3)
    for coroutine, error, message in [
        (service.model.embed([]), Empty, "`inputs` cannot be empty"),
        (service.model.embed(["a"] * 4), TooLarge, "batch size 4 > maximum allowed batch size 3"),
        (service.model.embed(["a"], dimensions=49), Invalid, "`dimensions` must be between 1 and 48"),
        (service.model.embed(["a"], options=Options(prompt_name="x")), Invalid, "`prompt_name` 'x'"),
        (service.model.embed(["a " * 99], options=Options(truncate=False)), Invalid, "must have at most 64 tokens"),
        (service.model.tokenize(["a"] * 4), TooLarge, "batch size 4"),
        (service.model.embed(["a"], options=Options(deadline=time.monotonic() - 1)), Expired, "deadline"),
    ]:
        with pytest.raises(error, match=message):
            run(coroutine)


def test_the_servers_own_truncation_is_used_unasked(start_service):
    with pytest.raises(Invalid):
        run(start_service(auto_truncate=False).model.embed(["a " * 99]))
    assert run(start_service().model.embed(["a " * 99])).usage.tokens == 64


def test_not_ready_before_loading_and_while_draining(start_service):
    service = Service(Settings.load(tiny_config(), environ={}))
    asking = [
        lambda: service.model.embed(["a"]),
        service.check,
        lambda: service.model.tokenize(["a"]),
    ]
    for ask in asking:
        with pytest.raises(NotReady, match="the model is loading"):
            run(ask())
    service.close()
    ready = start_service()
    ready.drain()
    with pytest.raises(NotReady, match="draining"):
        run(ready.model.embed(["a"]))


def test_a_failed_load_says_so():
    service = Service(Settings.load(tiny_config("nowhere"), environ={}))
    with pytest.raises(SetupError, match="nowhere is not a folder"):
        service.load()
    with pytest.raises(NotReady, match="the model failed to load"):
        run(service.check())
    with pytest.raises(NotReady, match="the model failed to load"):
        _ = service.model


def test_load_from_a_folder(tiny_folder):
    service = Service(Settings.load(tiny_config(tiny_folder), environ={}, engine="torch", precision="fp32"))
    service.load()
    assert run(service.model.embed(["the cat"])).rows.shape == (1, 48)
    run(service.check())
    service.close()


def test_the_tokenizer_is_read_beside_the_engine(tiny_folder, monkeypatch):
    is_read = threading.Event()

    def read(*of):
        is_read.set()
        return TextReader(*of)

    def create(settings, checkpoint):
        assert is_read.wait(LIMIT)
        return NullEngine(checkpoint)

    monkeypatch.setattr("bei.serving.service.TextReader", read)
    monkeypatch.setattr(choice, "create", create)
    service = Service(Settings.load(tiny_config(tiny_folder), environ={}))
    service.load()
    assert run(service.model.embed(["the cat"])).usage.tokens == 4
    service.close()


def test_draining_finishes_what_is_in_flight(start_service, tiny_checkpoint):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    engine.go.clear()
    engine.entered.clear()

    async def scenario():
        working = asyncio.create_task(service.model.embed(["the cat"]))
        await asyncio.to_thread(engine.entered.wait, LIMIT)
        service.drain()
        engine.go.set()
        return await working

    assert run(scenario()).rows.shape == (1, 48)


def test_too_many_requests_at_once(start_service, tiny_checkpoint):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine, max_concurrent_requests=2)
    engine.go.clear()

    async def scenario():
        working = [asyncio.create_task(service.model.embed(["the cat"])) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await service.model.embed(["one more"])
        engine.go.set()
        return await asyncio.gather(*working)

    assert len(run(scenario())) == 2


def test_a_deadline_ends_the_wait_while_the_engine_is_busy(start_service, tiny_checkpoint):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    engine.go.clear()
    with pytest.raises(Expired):
        run(service.model.embed(["the cat"], options=Options(deadline=time.monotonic() + 0.05)))
    engine.go.set()


@pytest.mark.parametrize("end", ["answered", "expired", "failed", "cancelled"])
def test_a_request_that_has_ended_is_not_held(start_service, tiny_checkpoint, monkeypatch, end):
    def held() -> int:
        return sum(issubclass(type(one), Request) for one in gc.get_objects())

    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    if end == "failed":
        engine.poison = service.model.texts.tokenizer.encode(["cat"], truncate=True)[0].ids[1]
    monkeypatch.setattr(logging.getLogger("bei"), "disabled", True)  # pytest keeps log records with their frames
    options = Options(deadline=time.monotonic() if end == "expired" else float("inf"))

    async def ask() -> str:
        asking = asyncio.ensure_future(service.model.embed(["the cat"], options=options))
        await asyncio.sleep(0)
        if end == "cancelled":
            asking.cancel()
        try:
            await asking
        except (Error, asyncio.CancelledError) as error:
            return type(error).__name__
        finally:
            del asking  # it holds its error, whose traceback refers to this frame
        return "Answer"

    gc.collect()
    before = held()
    gc.disable()
    try:
        ends = {run(ask()) for _ in range(20)}
        run(service.model.embed(["the dog"]))  # the queue then forgets entries that were dropped before they were taken
        assert held() - before <= len(service.model.scheduler._threads), "each thread may hold the last that it ran"
    finally:
        gc.enable()
    names = {"answered": "Answer", "expired": "Expired", "failed": "EngineFailed", "cancelled": "CancelledError"}
    assert ends == {names[end]}


def test_a_failing_engine_is_not_ready_until_it_works_again(start_service, tiny_checkpoint):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine)
    (probe,) = service.model.texts.tokenizer.encode(["a"], truncate=True)
    engine.poison = probe.ids[1]
    with pytest.raises(EngineFailed):
        run(service.model.embed(["a"]))
    with pytest.raises(NotReady, match="engine does not answer"):
        run(service.check())
    engine.poison = -1
    run(service.check())


def test_prompts(start_service, tiny_folder, tmp_path):
    service = start_service(default_prompt="the ")
    with_prompt, spelled = run(service.model.embed(["cat"])).rows, run(start_service().model.embed(["the cat"])).rows
    np.testing.assert_array_equal(with_prompt, spelled)
    with pytest.raises(SetupError, match="default_prompt_name 'q' is not one of the model's prompts: none"):
        start_service(default_prompt_name="q")


steps = st.lists(
    st.tuples(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.sampled_from(["wait", "cancel", "poison"])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps, st.integers(0, 1000))
def test_everybody_is_answered_once_and_rightly(service_for_property, script, seed):
    service, engine = service_for_property
    rng = random.Random(seed)

    async def client(lengths: list[int], fate: str) -> None:
        ids = [[rng.randrange(10, 90) for _ in range(n)] for n in lengths]
        if fate == "poison":
            ids[rng.randrange(len(ids))][0] = engine.poison
        task = asyncio.create_task(service.model.embed(ids))
        if fate == "cancel":
            await asyncio.sleep(rng.random() / 1000)  # at some time of its way
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, BaseException):
            # A neighbor in a poisoned batch fails with it, and only with EngineFailed.
            assert isinstance(result, EngineFailed if fate != "cancel" else (asyncio.CancelledError, Error))
            return
        assert fate != "poison"
        for row, of in zip(result.rows, ids, strict=True):
            np.testing.assert_allclose(row, expected(engine, of), atol=1e-5)

    async def everyone() -> None:
        await asyncio.gather(*(client(lengths, fate) for lengths, fate in script))

    run(everyone())


def expected(engine: NullEngine, ids: list[int]) -> np.ndarray:
    from bei.engines.base import Batch

    row = NullEngine.run(engine, Batch.pack([[2, *ids[:62], 3]]))[0]
    return row / np.linalg.norm(row)


@pytest.fixture(scope="module")
def service_for_property(tiny_checkpoint):
    engine = Gate(tiny_checkpoint)
    engine.poison = 99
    service = Service(Settings.load(tiny_config(), environ={}, max_num_tokens=100, max_batch_size=5))
    service.start(tiny_checkpoint, engine)
    yield service, engine
    service.close()


class Slow:
    """A tokenizer library that waits for `go` at each piece, and counts the pieces."""

    def __init__(self, library):
        self._library = library
        self.go, self.entered, self.pieces = threading.Event(), threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self._library, name)

    def encode_batch_fast(self, texts, **options):
        self._wait()
        return self._library.encode_batch_fast(texts, **options)

    def encode_batch(self, texts, **options):
        self._wait()
        return self._library.encode_batch(texts, **options)

    def _wait(self):
        self.pieces += 1
        self.entered.set()
        assert self.go.wait(LIMIT)


MANY = [f"the cat {i}" for i in range(2000)]


@pytest.mark.parametrize("method", ["embed", "embed_tokens", "tokenize"])
@pytest.mark.parametrize("leaves_by", ["cancel", "deadline"])
def test_whoever_leaves_keeps_a_place_until_the_work_ends_which_is_soon(start_service, method, leaves_by):
    service = start_service(max_concurrent_requests=1)
    slow = service.model.texts.tokenizer._reader._library = Slow(service.model.texts.tokenizer._reader._library)
    by_deadline = leaves_by == "deadline"
    if by_deadline and method == "tokenize":
        return
    deadline = time.monotonic() + 0.5
    more = {"options": Options(deadline=deadline)} if by_deadline else {}

    async def scenario():
        asking = asyncio.ensure_future(getattr(service.model, method)(MANY, **more))
        await asyncio.to_thread(slow.entered.wait, LIMIT)
        if by_deadline:
            await until(lambda: time.monotonic() > deadline)
        else:
            asking.cancel()
        await turns()
        assert not asking.done()
        with pytest.raises(Overloaded):
            await service.model.embed(["the dog"])
        slow.go.set()
        with pytest.raises(Expired if by_deadline else asyncio.CancelledError):
            await asking
        assert slow.pieces == 1
        assert len((await service.model.embed(["the dog"])).rows) == 1

    run(scenario())


def test_a_short_text_does_not_wait_behind_long_ones(start_service):
    service = start_service(tokenization_workers=1)
    library = service.model.texts.tokenizer._reader._library
    slow = service.model.texts.tokenizer._reader._library = Slow(library)

    async def scenario():
        bulk = asyncio.ensure_future(service.model.embed(["the cat " * 10_000]))
        await asyncio.to_thread(slow.entered.wait, LIMIT)
        service.model.texts.tokenizer._reader._library = library
        assert len((await service.model.embed(["the dog " * 100])).rows) == 1
        assert not bulk.done()
        slow.go.set()
        await bulk

    run(scenario())


@pytest.mark.parametrize(
    ("method", "many"),
    [("embed_tokens", 80), ("embed", 1000), ("tokenize", 1000)],
)
def test_an_answer_is_bounded_before_it_is_made(start_service, tiny_checkpoint, method, many):
    engine = Gate(tiny_checkpoint)
    service = start_service(engine, payload_limit=1000, max_bytes_in_flight=400_000)
    engine.go.clear()
    ask = getattr(service.model, method)
    with pytest.raises(TooLarge, match=r"the answer would take about \d+ bytes.*max_bytes_in_flight"):
        run(ask(["the cat sat on the mat"] * many))
    engine.go.set()
    assert run(ask(["the cat sat"]))


def test_what_is_put_to_texts_counts_in_an_answer(start_service, tiny_checkpoint):
    """The tokens of a text, the special tokens around it, and a prompt before it."""
    long = replace(tiny_checkpoint, prompts=Prompts({"long": "the cat " * 1000}))
    service = start_service(checkpoint=long, payload_limit=1000, max_bytes_in_flight=400_000)
    bounded = pytest.raises(TooLarge, match=r"the answer would take about \d+ bytes")
    with bounded:
        run(service.model.decode([[50] * 100_000]))
    with bounded:  # its text is a tenth of that, but each token is an intermediate text of its own
        run(service.model.decode([[50] * 6000]))
    with bounded:
        run(service.model.tokenize(["a"] * 300))
    with bounded:
        run(service.model.tokenize(["a"], prompt_name="long"))
    assert run(service.model.decode([[50] * 1000]))
    assert run(service.model.tokenize(["a"] * 300, add_special_tokens=False))
    assert service.in_flight.held == 0


def test_a_label_counts_as_long_as_it_is(start_service, tiny_checkpoint):
    named = replace(tiny_checkpoint, task="classifier", labels=("x" * 1000, "y"))
    service = start_service(checkpoint=named, payload_limit=1000, max_bytes_in_flight=400_000)
    assert run(service.model.classify(["the cat"]))
    with pytest.raises(TooLarge, match=r"the answer would take about \d+ bytes"):
        run(service.model.classify(["the cat"] * 10))


def test_what_is_made_for_a_request_counts_until_its_scope_ends(start_service):
    service = start_service(payload_limit=1000, max_bytes_in_flight=400_000)
    texts = ["the cat sat on the mat"] * 300

    async def twice():
        with service.in_flight.request():
            await service.model.embed(texts)
            assert service.in_flight.held > 300 * 48 * 4
            await asyncio.create_task(another(), context=contextvars.Context())
        assert service.in_flight.held == 0
        with service.in_flight.request():
            await service.model.embed(texts)

    async def another():
        with pytest.raises(Overloaded), service.in_flight.request():
            await service.model.embed(texts)

    run(twice())
    assert service.in_flight.held == 0


def test_a_long_instruction_is_not_read_on_the_loop_nor_written_many_times(start_service, monkeypatch):
    service = start_service(payload_limit=1000, max_bytes_in_flight=10_000_000)
    readers = []
    encode = type(service.model.texts.tokenizer).encode

    def noted(*args, **more):
        readers.append(threading.current_thread().name)
        return encode(*args, **more)

    monkeypatch.setattr(type(service.model.texts.tokenizer), "encode", noted)
    options = Options(instruction="the cat " * 10_000, truncation_direction="left")
    run(service.model.embed(["a"], options=options))
    assert readers[0].startswith("tokenizer")
    with pytest.raises(TooLarge):
        run(service.model.embed(["a"] * 1000, options=options))
    assert len(readers) == 1


@pytest.mark.parametrize("text", ["\x01" * 400_000, "the cat " * 50_000])
def test_a_text_that_is_refused_is_forgotten_at_once(start_service, text):
    """Without Python's garbage collector: no cycle contains the error and its objects."""
    service = start_service()

    class Text(str):
        """Only classes have weak references."""

    async def scenario():
        sent = Text(text)
        left = weakref.ref(sent)
        with pytest.raises((Untokenizable, Invalid)) as caught:
            await service.model.embed([sent], options=Options(truncate=False))
        del sent, caught
        await until(lambda: left() is None)

    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()
