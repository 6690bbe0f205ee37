"""Logits to scores, and what is best."""

import numpy as np

from bei.checkpoint.task import Scoring


def activate(logits: np.ndarray, scoring: Scoring) -> np.ndarray:
    """float32[..., labels] to scores of the same shape; softmax is over the last axis."""
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
    """int[..., N], the places of float32[..., N], greatest first; equal ones in their order. Of scores it says less: a
    sigmoid of more than 17 is 1 in float32."""
    return np.argsort(-logits, axis=-1, kind="stable")
