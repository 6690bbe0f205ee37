"""DeBERTa's scores by relative position (arXiv:2006.03654, §3.1; transformers, DisentangledSelfAttention)."""

import numpy as np
import torch
from torch import Tensor

from bei.architectures.spec import Disentangled


def bucket(distance: np.ndarray, spec: Disentangled) -> np.ndarray:
    """query position - key position → row of the table: exact when near, logarithmic when far, clamped at the ends
    (transformers, make_log_bucket_position)."""
    if spec.logarithmic:
        middle = spec.buckets // 2
        size = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
        scale = np.float32(np.log(np.float32((spec.max_distance - 1) / middle)))
        far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
        distance = np.where(size <= middle, distance, far * np.sign(distance)).astype(np.int64)
    rows: np.ndarray = np.clip(distance + spec.buckets, 0, 2 * spec.buckets - 1)
    return rows


class PositionScores:
    """Of one layer. position_queries, position_keys: [heads, 2 * buckets, size], of each relative position; None for
    those that add no score."""

    def __init__(self, spec: Disentangled, position_queries: Tensor | None, position_keys: Tensor | None):
        self._spec, self._queries, self._keys = spec, position_queries, position_keys

    def __call__(self, q: Tensor, k: Tensor, queries: slice, keys: slice) -> Tensor:
        """[count, heads, queries, keys]"""
        distance = np.arange(queries.start, queries.stop)[:, None] - np.arange(keys.start, keys.stop)
        rows = torch.from_numpy(bucket(distance, self._spec)).to(q.device)
        scores = torch.zeros(*q.shape[:3], k.shape[2], device=q.device)
        if self._keys is not None:
            by_row = (q @ self._keys.transpose(-1, -2)).float()
            scores += by_row.gather(-1, rows.expand(scores.shape))
        if self._queries is not None:
            by_row = (k @ self._queries.transpose(-1, -2)).float()
            scores += by_row.gather(-1, rows.T.expand(scores.transpose(-1, -2).shape)).transpose(-1, -2)
        return scores
