"""BGE-M3's sparse and multi-vector outputs (arXiv:2402.03216, §3.1; FlagEmbedding, BGEM3FlagModel)."""

from collections.abc import Collection

import numpy as np

from bei.checkpoint.m3 import M3
from bei.tasks.sparse import Terms
from bei.tasks.vectors import unit


def terms(states: np.ndarray, ids: np.ndarray, heads: M3, unused: Collection[int]) -> Terms:
    """states: float32[tokens, hidden], ids: int32[tokens] → the greatest weight of each distinct token, where it is
    above zero."""
    weights = heads.sparse(states)[:, 0]
    weights[np.isin(ids, list(unused))] = 0
    indices, owners = np.unique(ids, return_inverse=True)
    values = np.zeros(len(indices), np.float32)
    np.maximum.at(values, owners, weights)
    return Terms(indices[values > 0], values[values > 0])


def token_vectors(states: np.ndarray, heads: M3) -> np.ndarray:
    """states: float32[tokens, hidden] → float32[tokens - 1, D], unit vectors of all tokens except the first."""
    return unit(heads.colbert(states[1:]))
