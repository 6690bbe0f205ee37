"""Sparse vectors: the terms of a row that are not zero."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Terms:
    """`indices`: int64[n], ascending, into the vocabulary; `values`: float32[n]."""

    indices: np.ndarray
    values: np.ndarray


def terms(row: np.ndarray) -> Terms:
    """float32[vocabulary] → its terms."""
    indices = np.flatnonzero(row)
    return Terms(indices, row[indices])
