"""Token sequences, and transformers' results for them."""

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


def reference(model: torch.nn.Module, ids: list[list[int]]) -> np.ndarray:
    """Each sequence alone and unpadded: float32[T, hidden]."""
    with torch.no_grad():
        return np.concatenate([model(torch.tensor([s])).last_hidden_state[0].numpy() for s in ids])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
