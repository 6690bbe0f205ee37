"""Logits to scores, and their order."""

import numpy as np

from bei.checkpoint.task import Scoring


def activate(logits: np.ndarray, scoring: Scoring) -> np.ndarray:
    """float32[..., labels] → scores of the same shape; softmax is over the last axis."""
    match scoring:
        case "sigmoid":
            found: np.ndarray = np.exp(-np.logaddexp(0, -logits))
            return found
        case "softmax":
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
            return shares
        case "identity":
            return logits


def best_first(logits: np.ndarray) -> np.ndarray:
    """int[..., N]: the indices of float32[..., N], greatest first, equal ones in their order. Pass logits: as scores
    they may be equal, for a sigmoid above 17 is 1 in float32."""
    return np.argsort(-logits, axis=-1, kind="stable")
