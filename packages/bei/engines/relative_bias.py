"""Biases that are added to attention scores, by the distance of a key from its query."""

import math

import numpy as np

from bei.architectures.positions import Alibi, RelativeBias
from bei.architectures.spec import EncoderSpec


def bias_by_distance(spec: EncoderSpec, learned: np.ndarray | None) -> np.ndarray:
    """learned: float32[buckets, heads] of a RelativeBias, None for ALiBi → float32[heads, 2 * max_tokens - 1]: the bias
    for each difference of key and query position, from 1 - max_tokens to max_tokens - 1."""
    distance = np.arange(1 - spec.max_tokens, spec.max_tokens)
    if isinstance(spec.relative_bias, Alibi):
        return -np.outer(alibi_slopes(spec.heads), np.abs(distance)).astype(np.float32)
    if learned is None or not isinstance(spec.relative_bias, RelativeBias):
        raise ValueError("of the biases by distance, ALiBi is computed and RelativeBias is learned")
    return np.ascontiguousarray(learned[buckets(distance, spec.relative_bias)].T)


def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8 i / heads) for head i, counted from 1. If the number of heads is not a power of two, the remaining heads
    take every other slope of the next power (arXiv:2108.12409, §3, and its code, get_slopes)."""
    whole = 1 << math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, whole + 1) / whole)
    between = 2.0 ** (-4 * np.arange(1, 2 * (heads - whole), 2) / whole)
    return np.concatenate([slopes, between])


def buckets(distance: np.ndarray, spec: RelativeBias) -> np.ndarray:
    """key position - query position → bucket: exact when near, logarithmic when far, per sign (T5,
    arXiv:1910.10683, §2.1; transformers, MPNetEncoder.relative_position_bucket)."""
    half = spec.buckets // 2
    exact = half // 2
    size = np.abs(distance)
    scale = np.float32((half - exact) / np.log(spec.max_distance / exact))
    far = exact + (np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) * scale).astype(np.int64)
    found: np.ndarray = np.where(size < exact, size, np.minimum(far, half - 1)) + half * (distance > 0)
    return found
