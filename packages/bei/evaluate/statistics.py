"""Statistics of rows and scores: pure functions over numpy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NEIGHBORS = 10
_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Estimate:
    """A mean, with the interval in which 95 % of the bootstrap's means are."""

    mean: float
    least: float
    most: float


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean) -> Estimate:
    """The statistic of float[N] or float[N, K], and its percentile interval over resamples of the N (Efron 1979)."""
    rng, count = np.random.default_rng(0), len(values)
    made = [statistic(values[rng.integers(count, size=count)]) for _ in range(_RESAMPLES)]
    least, most = np.percentile(made, _INTERVAL)
    return Estimate(float(statistic(values)), float(least), float(most))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float[N] of float[N, D] and float[N, D], row by row."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: np.ndarray = (a * b).sum(1) / np.maximum(lengths, 1e-30)
    return found


def spearman(pairs: np.ndarray) -> float:
    """The correlation of the ranks of the two columns of float[N, 2]; those of ties are their mean."""
    return float(np.corrcoef(_ranks(pairs[:, 0]), _ranks(pairs[:, 1]))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: np.ndarray = (ends - (counts - 1) / 2)[places]
    return found


def neighbors_kept(exact: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """float[Q]: the share of the best documents of each query by `exact` that are among the best by `ours`, both
    float[Q, D] of scores. The best are NEIGHBORS, or all but one where there are fewer."""
    most = min(NEIGHBORS, exact.shape[1] - 1)
    best = (np.argpartition(-scores, most - 1, axis=1)[:, :most] for scores in (exact, ours))
    return np.array([len(set(a) & set(b)) / most for a, b in zip(*best, strict=True)])


def order_kept(exact: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """float[Q]: the share of pairs of documents, unlike by `exact`, that have the same order by `ours` (Kendall's
    concordance), both float[Q, D]."""
    kept = []
    for a, b in zip(exact, ours, strict=True):
        before, after = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
        unlike = before != 0
        kept.append((before == after)[unlike].mean() if unlike.any() else 1.0)
    return np.array(kept)
