"""The vectors of relative positions that attention scores read (DeBERTa, arXiv:2006.03654; XLNet, arXiv:1906.08237)."""

import numpy as np

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


def sinusoids(spec: Disentangled, width: int) -> np.ndarray:
    """float32[2 * buckets, width]: sines and then cosines of the distance of each row, from -buckets on (transformers,
    XLNetModel.relative_positional_encoding)."""
    distance = np.clip(np.arange(-spec.buckets, spec.buckets), -spec.max_distance, spec.max_distance)
    angles = distance[:, None] / 10_000.0 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
