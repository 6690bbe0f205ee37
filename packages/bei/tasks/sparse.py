"""Sparse vectors: the nonzero terms of a row."""

from typing import NamedTuple

import numpy as np


class Terms(NamedTuple):
    """`indices`: int64[n], ascending, into the vocabulary; `values`: float32[n]."""

    indices: np.ndarray
    values: np.ndarray


def terms(row: np.ndarray, most: int | None = None) -> Terms:
    """float32[vocabulary] → its terms, at most the `most` greatest."""
    return _greatest(row, np.flatnonzero(row), most)


def looked_up(ids: np.ndarray, weights: np.ndarray, most: int | None = None) -> Terms:
    """ids: int32[tokens], weights: float32[vocabulary] → each token that the text has, with its weight (sentence-
    transformers' SparseStaticEmbedding)."""
    indices = np.unique(ids).astype(np.int64)
    return _greatest(weights, indices[weights[indices] != 0], most)


def _greatest(row: np.ndarray, indices: np.ndarray, most: int | None) -> Terms:
    if most is not None and len(indices) > most:
        greatest = np.argpartition(-np.abs(row[indices]), most)[:most]
        indices = np.sort(indices[greatest])
    return Terms(indices, row[indices])
