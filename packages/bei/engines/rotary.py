"""Cosines and sines of the angles by which queries and keys are rotated (architectures/rope.py has the frequencies)."""

import numpy as np

from bei.architectures.positions import DynamicScaling, LongFrequencies, Rotary


class RotaryTable:
    """cos | sin of each position; grows to the longest sequence. Safe from several threads."""

    def __init__(self, rotary: Rotary):
        self._rotary, self._table = rotary, cos_sin(rotary, 256)

    def rows(self, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """positions: int[T], of each token in its sequence; lengths: int[T], of the token's sequence → float32[T,
        size]: the cosines of the pairs, then their sines."""
        longest, table = int(lengths.max()), self._table
        if longest > len(table):
            table = self._table = cos_sin(self._rotary, 1 << (longest - 1).bit_length())
        rows: np.ndarray = table[positions]
        dynamic = self._rotary.dynamic
        if dynamic:
            for length in np.unique(lengths[lengths > dynamic.trained]):
                own = lengths == length
                rows[own] = _cos_sin(self._rotary, _stretched(dynamic, self._rotary.size, int(length)), int(length))[
                    positions[own]
                ]
        return rows


def cos_sin(rotary: Rotary, positions: int) -> np.ndarray:
    """float32[positions, size]: cos | sin of each position, for a sequence within the trained length."""
    return _cos_sin(rotary, np.array(rotary.frequencies, np.float32), positions)


def _cos_sin(rotary: Rotary, frequencies: np.ndarray, positions: int) -> np.ndarray:
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies)
    return np.concatenate([np.cos(angles), np.sin(angles)], 1) * np.float32(rotary.scale)


def _stretched(scaling: DynamicScaling | LongFrequencies, size: int, length: int) -> np.ndarray:
    """The frequencies for a sequence beyond the trained length (transformers, _compute_dynamic_ntk_parameters)."""
    if isinstance(scaling, LongFrequencies):
        return np.array(scaling.frequencies, np.float32)
    grown = scaling.factor * length / scaling.trained - (scaling.factor - 1)
    base = scaling.base * grown ** (size / (size - 2))
    frequencies: np.ndarray = (base ** -(np.arange(0, size, 2) / size)).astype(np.float32)
    return frequencies
