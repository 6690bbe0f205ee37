"""The rows of a list to scores, as `rerank` of jina-reranker-v3's modeling.py makes them (arXiv:2509.25085)."""

from collections.abc import Sequence

import numpy as np

_TINY = 1e-12


def scores(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """float32[documents]: the cosine of each document's row with the query's. Each prompt, float32[its documents + 1,
    D], has a row of the query as its last; these are averaged, each with the greatest (1 + cosine) / 2 of its prompt
    as its weight."""
    weights = [(1 + _cosines(rows[-1], rows[:-1]).max()) / 2 for rows in prompts]
    query = np.average([rows[-1] for rows in prompts], axis=0, weights=np.maximum(weights, _TINY))
    return _cosines(query, np.concatenate([rows[:-1] for rows in prompts]))


def _cosines(query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(query) * np.linalg.norm(documents, axis=1)
    found: np.ndarray = (documents @ query / np.maximum(lengths, _TINY)).astype(np.float32)
    return found
