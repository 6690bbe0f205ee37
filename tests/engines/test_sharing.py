"""Threads share few rows by the columns of products: when they do, and that every bit stays what it is alone."""

from itertools import pairwise

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native import abi, encoder, library
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import level
from bei.engines.processor import Caches
from tests.support.parity import sequences
from tests.support.tiny_models import FAMILIES

MACHINES = {
    "two processors": encoder.machine_of(2, Caches(0, 1 << 20, 16 << 20)),
    "sixteen": encoder.machine_of(16, Caches(0, 2 << 20, 2 << 20)),
    "two sockets of 64": encoder.machine_of(128, Caches(0, 1 << 20, 4 << 20)),
}


@pytest.fixture
def eager(monkeypatch):
    """Meetings of threads are a gain, so they share whatever they can, even the only panel of a tiny product."""
    monkeypatch.setattr(encoder, "MEETING", -1000)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_is_what_it_is_on_one_thread(saved, native_cache, eager, family):
    """Of each sequence alone, and of a few in one batch."""
    checkpoint = read(saved(family)[1], "m")
    ids = [s for s in sequences() if len(s) < 24]

    def engine(precision: str, threads: int) -> NativeEngine:
        return NativeEngine(checkpoint, EngineOptions(precision=precision, threads=threads, cache_dir=native_cache))

    for precision in ("fp32", "bf16", "int8", "int4"):
        one, three = engine(precision, 1), engine(precision, 3)
        assert three.sharing(len(ids[0])).by_columns and not one.sharing(len(ids[0])).by_columns
        for row_kind in ("pooled", "tokens"):
            alone = [one.run(Batch.pack([s], row_kind=row_kind)) for s in ids]
            np.testing.assert_array_equal(three.run(Batch.pack(ids[:1], row_kind=row_kind)), alone[0])
            np.testing.assert_array_equal(three.run(Batch.pack(ids, row_kind=row_kind)), np.concatenate(alone))


# The choice


def linear(inputs: int, outputs: int, precision: str) -> abi.Linear:
    return abi.Linear(inputs=inputs, outputs=outputs, precision=abi.PRECISIONS[precision])


def sharing(library, layers: int, hidden: int, inner: int, precision: str, machine: abi.Machine, tokens: int):
    """Of BERT's shape."""
    layer = abi.Layer(
        qkv=linear(hidden, 3 * hidden, precision),
        out=linear(hidden, hidden, precision),
        up=linear(hidden, inner, precision),
        down=linear(inner, hidden, precision),
        rotary=-1,
    )
    model = abi.Model(
        precision=abi.PRECISIONS[precision], layers=abi.sequence(abi.Layer, [layer] * layers), layer_count=layers
    )
    return library.bei_sharing(model, machine, tokens)


@pytest.fixture(scope="module")
def loaded(native_cache):
    return library.load(level(), native_cache)


LARGE, SMALL = (24, 1024, 4096), (6, 384, 1536)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", MACHINES)
def test_a_short_query_to_a_large_model_is_shared(loaded, name, precision):
    machine = MACHINES[name]
    for tokens in (6, 12, 24):
        of = sharing(loaded, *LARGE, precision, machine, tokens)
        assert of.by_columns and 2 <= of.threads <= machine.threads
        assert of.shared < 0.56 * of.alone


@pytest.mark.parametrize("name", MACHINES)
def test_one_token_of_a_small_model_is_not(loaded, name):
    of = sharing(loaded, *SMALL, "int8", MACHINES[name], 1)
    assert (of.threads, of.by_columns, of.meetings) == (1, 0, 0)
    assert of.shared == of.alone


def test_nobody_shares_with_one_thread(loaded):
    machine = encoder.machine_of(1, Caches(0, 1 << 20, 1 << 20))
    assert [sharing(loaded, *LARGE, "bf16", machine, n).threads for n in (1, 12, 1000)] == [1, 1, 1]


def test_dear_meetings_take_fewer_threads(loaded, monkeypatch):
    """As many threads as the estimate says are best, and none where meetings cost more than they gain."""
    counts = []
    for meeting in (0, 0.1, 0.5, 1, 5000):
        monkeypatch.setattr(encoder, "MEETING", meeting)
        of = sharing(loaded, *LARGE, "int8", encoder.machine_of(64, Caches(0, 1 << 20, 16 << 20)), 12)
        counts.append(of.threads)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] == 1


@pytest.mark.parametrize("tokens", [1, 12, 47, 48, 96, 256, 1000])
@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["large", "small"])
def test_more_threads_are_not_slower(loaded, size, tokens):
    """By more than the estimates of the two forms may differ."""
    machines = [encoder.machine_of(n, Caches(0, 1 << 20, 4 << 20)) for n in (1, 2, 3, 4, 8, 16, 64)]
    times = [sharing(loaded, *size, "bf16", machine, tokens).shared for machine in machines]
    assert all(more <= 1.1 * fewer for fewer, more in pairwise(times))


def test_many_rows_are_shared_by_rows(loaded):
    """Where operands of all rows fill the second cache, and there are rows enough for every thread."""
    machine = encoder.machine_of(2, Caches(0, 256 << 10, 1 << 20))
    forms = [sharing(loaded, *LARGE, "int8", machine, n).by_columns for n in (12, 24, 1024, 4096)]
    assert forms == [1, 1, 0, 0]


@pytest.mark.parametrize("tokens", [128, 192, 256, 384])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_text_is_cut_once_for_each_thread_where_reading_is_dear(loaded, precision, tokens):
    """Two ranges a thread would read all matrices twice."""
    machine = encoder.machine_of(2, Caches(0, 256 << 10, 1 << 20))
    of = sharing(loaded, *LARGE, precision, machine, tokens)
    assert of.shared < 0.6 * of.alone


def test_each_meeting_is_counted(loaded):
    """Of a layer: operands, queries, attention, its output, norm, the halves of the MLP; in int8 two more roundings."""
    machine = MACHINES["sixteen"]
    counts = [sharing(loaded, *LARGE, precision, machine, 12).meetings for precision in ("bf16", "int8")]
    assert counts == [24 * 7, 24 * 9]
