"""Vectors in fewer bits are sentence-transformers', to the bit; small floats are torch's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings

from bei.tasks.precision import fixed_ranges, lowered, raised

ROWS = np.random.default_rng(0).standard_normal((40, 37), np.float32)
RANGES = np.stack([ROWS[:20].min(0), ROWS[:20].max(0)])


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_as_sentence_transformers_given_the_same_ranges(precision):
    """Numbers outside the ranges, a dimension without a range, and dimensions that fill no byte among them."""
    ranges = RANGES.copy()
    ranges[:, 3] = 0.25
    for rows in (ROWS, ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), ROWS[:, :16]):
        of_width = ranges[:, : rows.shape[1]]
        expected = quantize_embeddings(rows, precision, ranges=of_width)
        found = lowered(rows, precision, of_width)
        assert found.dtype == expected.dtype == (np.int8 if precision in ("int8", "binary") else np.uint8)
        np.testing.assert_array_equal(found, expected)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_small_floats_are_rounded_as_torch_rounds_them(numbers):
    rows = np.array([numbers], np.float32)
    bfloat16 = torch.tensor(rows).to(torch.bfloat16)
    found = lowered(rows, "bfloat16", RANGES)
    np.testing.assert_array_equal(found, bfloat16.view(torch.uint16).numpy())
    np.testing.assert_array_equal(raised(found, "bfloat16"), bfloat16.float().numpy())


def test_fixed_ranges_are_the_same_on_every_side_and_for_every_dimension():
    ranges = fixed_ranges(16)
    assert (ranges.shape, ranges.dtype) == ((2, 16), np.float32)
    assert (ranges[0] == -ranges[1]).all()
    assert len(set(ranges[1].tolist())) == 1
    assert fixed_ranges(64)[1, 0] == ranges[1, 0] / 2
    assert lowered(np.zeros((1, 16), np.float32), "uint8", ranges).tolist() == [[127] * 16]
