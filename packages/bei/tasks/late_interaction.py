"""MaxSim: the comparison of a query with a document by a ColBERT model."""

import numpy as np


def maxsim(query: np.ndarray, document: np.ndarray, *, mean: bool) -> float:
    """For each query token, float32[q, D], the similarity of the closest document token, float32[d, D]; returns their
    sum, or their mean (ColBERT, arXiv:2004.12832, §3.3; the mean is sentence-transformers' `meanmaxsim`). 0 where
    either has no token left."""
    if not len(query) or not len(document):
        return 0.0
    closest = (query @ document.T).max(1)
    return float(closest.mean() if mean else closest.sum())
