"""Sparse vectors: the nonzero terms of a row."""

from typing import NamedTuple

import numpy as np


class Terms(NamedTuple):
    """`indices`: int64[n], ascending, into the vocabulary; `values`: float32[n]."""

    indices: np.ndarray
    values: np.ndarray


def terms(row: np.ndarray, most: int | None = None) -> Terms:
    """float32[vocabulary] → its terms, at most the `most` greatest."""
    indices = np.flatnonzero(row)
    if most is not None and len(indices) > most:
        greatest = np.argpartition(-np.abs(row[indices]), most)[:most]
        indices = np.sort(indices[greatest])
    return Terms(indices, row[indices])
