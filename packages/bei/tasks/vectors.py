"""Finishes rows as a request asks: fewer dimensions, length 1, similarity. Rows are float32[N, D]."""

import numpy as np

from bei.checkpoint.similarity import SimilarityName
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


def similarities(first: np.ndarray, second: np.ndarray, name: SimilarityName = "cosine") -> np.ndarray:
    """Of each of float32[N, D] to each of float32[M, D]: float32[N, M]. A distance is negative, so that more is
    closer."""
    match name:
        case "cosine":
            found: np.ndarray = unit(first) @ unit(second).T
        case "dot":
            found = first @ second.T
        case "euclidean" | "manhattan":
            found = np.zeros((len(first), len(second)), np.float32)
            for row, one in zip(found, first, strict=True):
                row[:] = pairwise(one[None], second, name)
    return found


def pairwise(first: np.ndarray, second: np.ndarray, name: SimilarityName) -> np.ndarray:
    """Of each row of one to the row of the other with its number: float32[N]. A single row stands for N."""
    match name:
        case "cosine":
            found: np.ndarray = (unit(first) * unit(second)).sum(1)
        case "dot":
            found = (first * second).sum(1)
        case "euclidean" | "manhattan":
            found = -np.linalg.norm(second - first, 2 if name == "euclidean" else 1, axis=1)
    return found
