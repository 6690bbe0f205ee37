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


def entailments(logits: np.ndarray, entailment: int, *, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """float32[N, candidates, labels], of a model of inference, → the score of each candidate, and a number by which
    candidates are ordered, float32[N, candidates] both. Candidates share one softmax; with `each`, or if there is only
    one, each is compared with its contradiction (transformers, pipelines/zero_shot_classification.py)."""
    entailed = logits[..., entailment]
    if not each and logits.shape[1] > 1:
        return activate(entailed, "softmax"), entailed
    margins = entailed - logits[..., -1 if entailment == 0 else 0]
    return activate(margins, "sigmoid"), margins


def best_first(logits: np.ndarray) -> np.ndarray:
    """int[..., N]: the indices of float32[..., N], greatest first, equal ones in their order. Pass logits: as scores
    they may be equal, for a sigmoid above 17 is 1 in float32."""
    return np.argsort(-logits, axis=-1, kind="stable")
