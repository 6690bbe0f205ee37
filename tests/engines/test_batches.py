"""The batch that engines get, and the reduction of its rows, by hand."""

from typing import get_args

import numpy as np
import pytest

from bei.architectures.spec import Pooling, PoolingMode
from bei.engines.base import DEFAULTS, Batch, pool, token_weights


def test_sequences_lie_end_to_end():
    ids = [[1, 2, 3], np.array([4]), [5, 6]]
    types, seen = [None, [1], np.array([0, 1])], [None, 1, 1]
    batch = Batch.pack(ids, token_types=types, prompt_tokens=[1, 0, 2], attended=seen, row_kind="tokens")
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.token_types.tolist() == [0, 0, 0, 1, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.prompt_tokens.tolist() == [1, 0, 2]
    assert batch.attended.tolist() == [3, 1, 1]
    assert (batch.row_kind, len(batch), batch.lengths.tolist()) == ("tokens", 3, [3, 1, 2])


def test_of_what_is_not_given_there_is_none():
    batch = Batch.pack([[7, 8], [9]])
    assert (batch.token_types.tolist(), batch.prompt_tokens.tolist()) == ([0, 0, 0], [0, 0])
    assert (batch.attended.tolist(), batch.row_kind) == ([2, 1], "pooled"), "all are attended to"


@pytest.mark.parametrize("given", [{}, {"token_types": [[1], [1, 1]], "prompt_tokens": [1, 1], "attended": [1, 2]}])
def test_every_array_is_of_int32(given):
    batch = Batch.pack([[7], [8, 9]], **given)
    arrays = (batch.input_ids, batch.token_types, batch.cu_seqlens, batch.prompt_tokens, batch.attended)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


STATES = np.array([[1, -2], [3, 6], [8, 2], [4, 4]], np.float32)  # of sequences of 3 tokens and of 1
BY_HAND = {
    "first": [[1, -2], [4, 4]],
    "last": [[8, 2], [4, 4]],
    "mean": [[4, 2], [4, 4]],
    "max": [[8, 6], [4, 4]],
    "sum": [[12, 6], [4, 4]],
    "mean_sqrt_len": [[12 / 3**0.5, 6 / 3**0.5], [4, 4]],
    "weighted_mean": [[31 / 6, 16 / 6], [4, 4]],
}
OF_THE_LAST_TWO = {
    "first": [3, 6],
    "last": [8, 2],
    "mean": [5.5, 4],
    "max": [8, 6],
    "sum": [11, 8],
    "mean_sqrt_len": [11 / 2**0.5, 8 / 2**0.5],
    "weighted_mean": [(3 * 2 + 8 * 3) / 5, (6 * 2 + 2 * 3) / 5],
}


@pytest.mark.parametrize("mode", get_args(PoolingMode))
def test_each_mode(mode):
    rows = pool(STATES, Batch.pack([[0] * 3, [0]], prompt_tokens=[1, 1]), Pooling((mode,)))
    np.testing.assert_allclose(rows, BY_HAND[mode], rtol=1e-6)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("mode", get_args(PoolingMode))
def test_each_mode_without_the_prompt(mode):
    """A token keeps the weight of its place; the last token stays, however long the prompt."""
    batch = Batch.pack([[0] * 3, [0]], prompt_tokens=[1, 5])
    rows = pool(STATES, batch, Pooling((mode,), include_prompt=False))
    np.testing.assert_allclose(rows, [OF_THE_LAST_TWO[mode], [4, 4]], rtol=1e-6)
    last = pool(STATES, Batch.pack([[0] * 3, [0]], prompt_tokens=[3, 0]), Pooling((mode,), include_prompt=False))

    np.testing.assert_allclose(last, [[8, 2], [4, 4]], rtol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean", "mean_sqrt_len", "weighted_mean"])
def test_the_weights_of_several_texts_are_those_of_each(mode):
    pooled = np.array([[True, True, True, False], [False, True, True, True]])
    np.testing.assert_array_equal(token_weights(mode, pooled), [token_weights(mode, of) for of in pooled])


def test_modes_stand_side_by_side_in_their_order():
    rows = pool(STATES, Batch.pack([[0] * 3, [0]]), Pooling(("max", "first")))
    assert rows.tolist() == [[8, 6, 1, -2], [4, 4, 4, 4]]


def test_what_an_engine_is_asked_for_unless_a_config_says_otherwise():
    """Calibration as Baseten documents it."""
    calibration = DEFAULTS.calibration
    assert (calibration.dataset, calibration.texts, calibration.tokens) == ("abisee/cnn_dailymail", 1024, 1536)
    assert (DEFAULTS.precision, DEFAULTS.quantization.value, DEFAULTS.threads) == ("auto", "no_quant", None)
    assert (DEFAULTS.max_num_tokens, DEFAULTS.max_batch_size) == (16384, 256)
    assert DEFAULTS.cache_dir.as_posix() == "~/.cache/bei"
