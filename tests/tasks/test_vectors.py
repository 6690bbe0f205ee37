"""Vectors are cut, then normalized; their numbers are those of numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.errors import Invalid
from bei.tasks import vectors


@given(st.integers(1, 8), st.sampled_from([None, 0, 1, 5, 8]), st.booleans())
def test_cut_then_normalize(count, dimensions, normalize):
    rows = np.random.default_rng(count).standard_normal((count, 8), np.float32)
    cut = rows[:, : dimensions or 8]
    finished = vectors.finish(rows, dimensions=dimensions, normalize=normalize)
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True) if normalize else cut
    np.testing.assert_allclose(finished, expected, rtol=1e-6)
    assert finished.dtype == np.float32


def test_a_zero_row_stays_zero():
    assert not vectors.unit(np.zeros((2, 3), np.float32)).any()


@pytest.mark.parametrize("dimensions", [-1, 9])
def test_dimensions_out_of_range(dimensions):
    with pytest.raises(Invalid, match=f"between 1 and 8, not {dimensions}") as caught:
        vectors.check(dimensions, 8)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("dimensions", [None, 0, 1, 8])
def test_dimensions_in_range(dimensions):
    vectors.check(dimensions, 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [1, 0, -1]),
        ("dot", [2, 0, -1]),
        ("euclidean", [-1, -(10**0.5), -2]),
        ("manhattan", [-1, -4, -2]),
    ],
)
def test_similarities(name, expected):
    rows = np.array([[1, 0], [2, 0], [0, 3], [-1, 0]], np.float32)
    np.testing.assert_allclose(vectors.similarities(rows[:1], rows[1:], name), [expected], atol=1e-6)
