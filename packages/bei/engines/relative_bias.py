"""The learned bias of each distance between two tokens (T5, arXiv:1910.10683, §2.1; MPNet)."""

import numpy as np

from bei.architectures.spec import RelativeBias


def bias_by_distance(spec: RelativeBias, weights: np.ndarray, max_tokens: int) -> np.ndarray:
    """weights: float32[buckets, heads] → float32[heads, 2 * max_tokens - 1], the bias of each key's position less its
    query's, from 1 - max_tokens on."""
    return np.ascontiguousarray(weights[buckets(np.arange(1 - max_tokens, max_tokens), spec)].T)


def buckets(distance: np.ndarray, spec: RelativeBias) -> np.ndarray:
    """key position - query position → bucket: exact when near, logarithmic when far, signs apart (bidirectional;
    transformers, MPNetEncoder.relative_position_bucket)."""
    half = spec.buckets // 2
    exact = half // 2
    size = np.abs(distance)
    scale = np.float32((half - exact) / np.log(spec.max_distance / exact))
    far = exact + (np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) * scale).astype(np.int64)
    return np.where(size < exact, size, np.minimum(far, half - 1)) + half * (distance > 0)
