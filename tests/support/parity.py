"""Token sequences, and transformers' results for them."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from bei.checkpoint.colbert import LateInteraction
from tests.support.tiny_models import VOCAB

COLBERT = LateInteraction(
    query_tokens=6,
    document_tokens=None,
    expansion=6,
    attend=False,
    mask="[MASK]",
    skiplist=(),
    skip_queries=False,
    markers={},
    mean=False,
)
LENGTHS = [1, 5, 64, 7, 5, 1, 33, 64, 2]


def sequences(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, len(VOCAB), length).tolist() for length in LENGTHS]


def reference(model: torch.nn.Module, ids: list[list[int]], attended: Sequence[int | None] | None = None) -> np.ndarray:
    """Each sequence alone and unpadded: float32[T, hidden]. `attended`: the leading tokens of each that all its tokens
    attend to, or None for all."""
    counts = attended or [None] * len(ids)
    with torch.no_grad():
        return np.concatenate([_states(model, of, count) for of, count in zip(ids, counts, strict=True)])


def _states(model: torch.nn.Module, ids: list[int], attended: int | None) -> np.ndarray:
    mask = {} if attended is None else {"attention_mask": (torch.arange(len(ids)) < attended).long()[None]}
    return model(torch.tensor([ids]), **mask).last_hidden_state[0].numpy()


@cache
def expected_states(model: torch.nn.Module, seed: int = 0) -> np.ndarray:
    """The same for the sequences of a seed, computed once for all engines."""
    states = reference(model, sequences(seed))
    states.setflags(write=False)
    return states


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def least_in_bf16(family: str) -> float:
    """The least cosine of a row to fp32. A row of the random EmbeddingGemma 2 is ill-conditioned: in int8 it is at
    0.998, where the median is at 0.9994."""
    return 0.998 if family == "embedding_gemma2_text" else 0.9995
