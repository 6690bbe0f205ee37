"""Sequences with a common beginning: the shared part, and that no answer changes by a bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.prefixes import LEAST, share, worth_sharing
from tests.support.tiny_models import ALIKE, CAUSAL, VOCAB, random_model, save

LAST = {"pooling_mode": "lasttoken"}
BEGINNINGS = [[i + 5 for i in range(n)] for n in (LEAST, LEAST + 1, LEAST + 9)]
WINDOW_BEGINS_AT_AN_ODD_TOKEN = [BEGINNINGS[0] + [5], BEGINNINGS[2] + [9, 15, 15, 18, 19, 15, 15]]
SEQUENCES = st.lists(
    st.tuples(st.sampled_from([[], *BEGINNINGS]), st.lists(st.integers(5, 20), min_size=1, max_size=16)),
    min_size=1,
    max_size=12,
).map(lambda parts: [beginning + rest for beginning, rest in parts])


@given(SEQUENCES)
def test_nothing_is_lost(sequences):
    batch = Batch.pack(sequences)
    shared = share(batch)
    if shared is None:
        return
    ends = shared.batch.cu_seqlens
    parts = [shared.batch.input_ids[a:b].tolist() for a, b in pairwise(ends)]
    for row, ids in zip(shared.rows, sequences, strict=True):
        parent = shared.parents[row]
        assert (parts[parent] if parent >= 0 else []) + parts[row] == ids
        assert parts[row]
        assert shared.offsets[row] == len(ids) - len(parts[row])
    assert sum(map(len, parts)) < sum(map(len, sequences))
    assert all(shared.parents[parent] < 0 for parent in shared.parents if parent >= 0)


def test_two_queries_share_what_saves_more():
    template, first, second = [7] * LEAST, [8] * 20, [9] * 20
    queries = [[*template, *query, i] for query in (first, second) for i in (11, 12, 13)]
    shared = share(Batch.pack(queries))
    assert shared.batch.lengths.tolist() == [LEAST + 20] * 2 + [1] * 6
    assert shared.parents.tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    alone = share(Batch.pack([[*template, i, i] for i in (11, 12, 13)]))
    assert alone.batch.lengths.tolist() == [LEAST, 2, 2, 2]


@given(SEQUENCES)
def test_what_all_begin_with_is_worth_sharing(sequences):
    most = min(map(len, sequences)) - 1
    longest = next(n for n in range(most, -1, -1) if all(ids[:n] == sequences[0][:n] for ids in sequences))
    assert worth_sharing([np.array(ids) for ids in sequences]) == (longest if longest >= LEAST else 0)


@pytest.fixture(scope="module", params=[family for family in CAUSAL if family not in ALIKE])
def engine(request, tmp_path_factory, native_cache):
    folder = save(tmp_path_factory.mktemp("model"), random_model(request.param), pooling=LAST)

    def make(precision: str) -> NativeEngine:
        return NativeEngine(read(folder, "m"), EngineOptions(precision=precision, threads=2, cache_dir=native_cache))

    return {precision: make(precision) for precision in ("fp32", "bf16", "int8", "int4")}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@given(sequences=SEQUENCES)
@example(sequences=WINDOW_BEGINS_AT_AN_ODD_TOKEN)
@settings(max_examples=15, deadline=None)
def test_a_row_is_bit_for_bit_what_it_is_alone(engine, precision, sequences):
    assert max(max(ids) for ids in sequences) < len(VOCAB)
    together = engine[precision].run(Batch.pack(sequences))
    alone = np.concatenate([engine[precision].run(Batch.pack([ids])) for ids in sequences])
    np.testing.assert_array_equal(together, alone)
