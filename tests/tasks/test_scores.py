"""Logits to scores, rows to terms, vectors to a similarity: by hand."""

import numpy as np
import pytest

from bei.checkpoint.m3 import M3, Projection
from bei.tasks import m3, sparse
from bei.tasks.late_interaction import maxsim
from bei.tasks.scores import activate, best_first

LOG_3 = np.log(3).astype(np.float32)


def f32(*values) -> np.ndarray:
    return np.array(values, np.float32)


def test_sigmoid():
    np.testing.assert_allclose(activate(f32(0, LOG_3, -LOG_3), "sigmoid"), [0.5, 0.75, 0.25], rtol=1e-6)
    assert activate(f32(1000, -1000), "sigmoid").tolist() == [1, 0], "without an overflow"


def test_softmax_is_over_labels():
    scores = activate(f32([[0, LOG_3], [5, 5]], [[LOG_3, 0], [1000, -1000]]), "softmax")
    np.testing.assert_allclose(scores, [[[0.25, 0.75], [0.5, 0.5]], [[0.75, 0.25], [1, 0]]], rtol=1e-6)


def test_identity():
    assert activate(f32(3, -2), "identity").tolist() == [3, -2]


def test_best_first_and_equal_ones_in_their_order():
    assert best_first(f32(1, 3, 2, 3)).tolist() == [1, 3, 2, 0]
    assert best_first(f32([1, 2], [2, 1])).tolist() == [[1, 0], [0, 1]]
    many = best_first(np.zeros(100, np.float32))
    assert many.tolist() == list(range(100))


def test_terms_are_what_is_not_zero():
    terms = sparse.terms(f32(0, 2, 0, -3, 1))
    assert (terms.indices.tolist(), terms.values.tolist()) == ([1, 3, 4], [2, -3, 1])
    assert not len(sparse.terms(f32(0, 0)).indices)


@pytest.mark.parametrize(
    ("most", "indices"), [(1, [3]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 3, 4]), (0, []), (None, [1, 3, 4])]
)
def test_the_greatest_terms_in_the_order_of_the_vocabulary(most, indices):
    row = f32(0, 2, 0, -3, 1)
    terms = sparse.terms(row, most)
    assert (terms.indices.tolist(), terms.values.tolist()) == (indices, row[indices].tolist())


def test_maxsim():
    query, document = f32([1, 0], [0, 2]), f32([1, 1], [3, -1], [0, 0])
    assert maxsim(query, document, mean=False) == 3 + 2
    assert maxsim(query, document, mean=True) == 2.5
    assert isinstance(maxsim(query, document, mean=True), float)


@pytest.mark.parametrize(("query", "document"), [((0, 2), (3, 2)), ((3, 2), (0, 2)), ((0, 2), (0, 2))])
@pytest.mark.parametrize("mean", [True, False])
def test_of_nothing_the_similarity_is_0(query, document, mean):
    assert maxsim(np.ones(query, np.float32), np.ones(document, np.float32), mean=mean) == 0.0


HEADS = M3(
    sparse=Projection(f32([1, 0, 0]), f32(0.5)), colbert=Projection(f32([0, 1, 0], [0, 0, 1]), f32(0, 0)), unused=()
)


def test_m3_s_terms_are_the_greatest_weights_of_what_occurs():
    states = f32([9, 0, 0], [1, 0, 0], [2, 0, 0], [-0.5, 0, 0], [-3, 0, 0], [0.25, 0, 0])
    terms = m3.terms(states, np.array([0, 7, 7, 4, 5, 3], np.int32), HEADS, unused={0, 99})
    assert (terms.indices.tolist(), terms.values.tolist()) == ([3, 7], [0.75, 2.5])
    assert terms.values.dtype == np.float32


def test_m3_s_vectors_are_those_of_all_tokens_but_the_first():
    vectors = m3.token_vectors(f32([1, 1, 1], [5, 3, 4], [0, 0, 2]), HEADS)
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]], rtol=1e-6)
