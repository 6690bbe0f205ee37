"""Vectors in fewer bits, as sentence-transformers' `quantize_embeddings` makes them. Rows are float32[N, D]."""

from collections.abc import Callable
from typing import Literal

import numpy as np

Integers = Literal["int8", "uint8"]
Bits = Literal["binary", "ubinary"]
Precision = Literal["float32", "float16", "bfloat16", Integers, Bits]

REACH = 5.0
"""The reach of the fixed ranges, by measurement; docs/tuning.md has the recall that it costs."""


def fixed_ranges(width: int) -> np.ndarray:
    """float32[2, D], for vectors of length 1 that nobody calibrated: every number reaches from -c/√D to c/√D."""
    reach = np.float32(REACH / np.sqrt(width))
    return np.stack([np.full(width, -reach), np.full(width, reach)])


def lowered(rows: np.ndarray, precision: Precision, ranges: np.ndarray) -> np.ndarray:
    """The rows in a precision. ranges: float32[2, D], the least and the greatest value of each dimension, which int8
    and uint8 divide into 256 steps. `binary` and `ubinary` are the signs, eight to a byte, the first in the highest
    bit. bfloat16 is uint16, its bits."""
    return _LOWERED[precision](rows, ranges)


def raised(rows: np.ndarray, precision: Precision) -> np.ndarray:
    """Lowered rows as numbers that JSON can hold."""
    return (rows.astype(np.uint32) << 16).view(np.float32) if precision == "bfloat16" else rows


def _steps(rows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """The step that each number stands on: float32[N, D], 0 to 255."""
    starts = ranges[0]
    steps = (ranges[1] - starts) / 255
    found: np.ndarray = np.clip(np.floor((rows - starts) / np.where(steps == 0, 1, steps)), 0, 255)
    return found


def _bfloat16(rows: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, to the even one of two."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    made: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return made


def _signs(rows: np.ndarray) -> np.ndarray:
    return np.packbits(rows > 0, axis=-1)


_LOWERED: dict[Precision, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "float32": lambda rows, _: rows,
    "float16": lambda rows, _: rows.astype(np.float16),
    "bfloat16": lambda rows, _: _bfloat16(rows),
    "int8": lambda rows, ranges: (_steps(rows, ranges) - 128).astype(np.int8),
    "uint8": lambda rows, ranges: _steps(rows, ranges).astype(np.uint8),
    "binary": lambda rows, _: (_signs(rows).astype(np.int16) - 128).astype(np.int8),
    "ubinary": lambda rows, _: _signs(rows),
}
