"""Rows of marked tokens: of each engine those that it gives for all tokens."""

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.null import NullEngine
from bei.errors import EngineFailed
from tests.support.list_models import save_list_ranker

IDS = [np.arange(5, 5 + length) for length in (9, 200, 1, 64, 30)]
MARKED = [np.array([0, 8]), np.array([3, 4, 5, 199]), None, np.array([63]), np.array([], np.int32)]


def test_the_marked_tokens_of_a_batch():
    batch = Batch.pack(IDS, row_kind="tokens", marked=MARKED)
    assert batch.marked.tolist() == [0, 8, 12, 13, 14, 208, 209, 273]
    assert batch.marked.dtype == np.int32
    assert batch.first_rows.tolist() == [0, 2, 6, 7, 8]
    assert Batch.pack(IDS, marked=[None] * 5).marked is None
    assert Batch.pack(IDS).first_rows.tolist() == [0, 9, 209, 210, 274]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return read(save_list_ranker(tmp_path_factory.mktemp("ranker")), "m")


@pytest.mark.parametrize("kind", ["ranker", "bert"])
def test_each_engine(make, saved, ranker, kind):
    checkpoint = ranker if kind == "ranker" else read(saved("bert", max_position_embeddings=256)[1], "m")
    engine = make(checkpoint, "fp32", threads=2)
    ids = [of % checkpoint.spec.vocab_size for of in IDS]
    whole, some = Batch.pack(ids, row_kind="tokens"), Batch.pack(ids, row_kind="tokens", marked=MARKED)
    rows = engine.run(some)
    assert rows.shape == (8, checkpoint.spec.token_size)
    np.testing.assert_allclose(rows, engine.run(whole)[some.marked], rtol=1e-4, atol=1e-5)
    nothing = Batch.pack(ids[:1], row_kind="tokens", marked=[np.array([], np.int32)])
    assert engine.run(nothing).shape == (0, checkpoint.spec.token_size)


def test_the_null_engine(tiny_checkpoint):
    engine = NullEngine(tiny_checkpoint)
    whole, some = Batch.pack(IDS[:1], row_kind="tokens"), Batch.pack(IDS[:1], row_kind="tokens", marked=MARKED[:1])
    np.testing.assert_array_equal(engine.run(some), engine.run(whole)[[0, 8]])


@pytest.mark.parametrize("marked", [[9], [-1], [3, 3], [4, 2]], ids=str)
def test_the_library_refuses_marks_that_are_no_tokens(ranker, native_cache, marked):
    engine = NativeEngine(ranker, EngineOptions(precision="fp32", threads=1, cache_dir=native_cache))
    batch = Batch.pack(IDS[:1], row_kind="tokens", marked=[np.array(marked, np.int32)])
    with pytest.raises(EngineFailed):
        engine.run(batch)
