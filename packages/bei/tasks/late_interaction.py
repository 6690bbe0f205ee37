"""MaxSim: how a ColBERT model compares a query with a document."""

import numpy as np


def maxsim(query: np.ndarray, document: np.ndarray, *, mean: bool) -> float:
    """For each of the query's tokens, float32[q, D], the closest of the document's, float32[d, D]; their sum, or mean
    (ColBERT, arXiv:2004.12832, §3.3; the mean is sentence-transformers' `meanmaxsim`). 0 where either has none left."""
    if not len(query) or not len(document):
        return 0.0
    closest = (query @ document.T).max(1)
    return float(closest.mean() if mean else closest.sum())
