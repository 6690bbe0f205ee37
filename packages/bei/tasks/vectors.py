"""Finishes rows as a request asks: fewer dimensions, length 1, similarity. Rows are float32[N, D]."""

import numpy as np

from bei.errors import Invalid

_TINY = np.float32(1e-12)  # the eps of torch.nn.functional.normalize: a zero row stays zero


def check(dimensions: int | None, width: int) -> None:
    """Raises Invalid unless rows of `width` can be cut to `dimensions`; None and 0 mean all of them."""
    if dimensions and not 0 < dimensions <= width:
        raise Invalid(f"`dimensions` must be between 1 and {width}, not {dimensions}", param="dimensions")


def finish(rows: np.ndarray, *, dimensions: int | None, normalize: bool) -> np.ndarray:
    """Cut, then normalize (Matryoshka, arXiv:2205.13147)."""
    rows = rows[:, : dimensions or rows.shape[1]]
    return unit(rows) if normalize else rows


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    lengths = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
    made: np.ndarray = rows / np.maximum(lengths, _TINY)
    return made


def similarities(source: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of float32[D] to each of float32[N, D]: float32[N]."""
    cosines: np.ndarray = unit(others) @ unit(source[None])[0]
    return cosines
