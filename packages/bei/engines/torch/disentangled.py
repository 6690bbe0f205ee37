"""Scores by relative position, and by segment (arXiv:2006.03654, §3.1; transformers, DisentangledSelfAttention and
XLNetRelativeAttention)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bei.architectures.spec import Disentangled
from bei.engines.relative_vectors import bucket


@dataclass(frozen=True)
class Vectors:
    """Of one layer; None for those that add no score. queries, keys: [heads, rows, size], of each relative position;
    segments: [heads, 2, size]. The biases, float32[heads, 1, rows or 2], are of the products with keys and segments."""

    queries: Tensor | None = None
    keys: Tensor | None = None
    key_bias: Tensor | None = None
    segments: Tensor | None = None
    segment_bias: Tensor | None = None


class PositionScores:
    def __init__(self, spec: Disentangled, vectors: Vectors):
        self._spec, self._of = spec, vectors

    def __call__(self, q: Tensor, k: Tensor, queries: slice, keys: slice, types: Tensor | None) -> Tensor:
        """[count, heads, queries, keys]. types: int[count, tokens], where there are segments."""
        distance = np.arange(queries.start, queries.stop)[:, None] - np.arange(keys.start, keys.stop)
        rows = torch.from_numpy(bucket(distance, self._spec)).to(q.device)
        scores = torch.zeros(*q.shape[:3], k.shape[2], device=q.device)
        if self._of.keys is not None:
            by_row = _products(q, self._of.keys, self._of.key_bias)
            scores += by_row.gather(-1, rows.expand(scores.shape))
        if self._of.queries is not None:
            by_row = _products(k, self._of.queries, None)
            scores += by_row.gather(-1, rows.T.expand(scores.transpose(-1, -2).shape)).transpose(-1, -2)
        if self._of.segments is not None and types is not None:
            same, other = _products(q, self._of.segments, self._of.segment_bias).split(1, -1)
            differs = types[:, None, queries, None] != types[:, None, None, keys]
            scores += torch.where(differs, other, same)
        return scores


def _products(x: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    products = (x @ vectors.transpose(-1, -2)).float()
    return products if bias is None else products + bias
