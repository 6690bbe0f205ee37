"""The abilities of models: the tasks that have each of them, and the refusal of a model without it, in TEI's words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Task

Ability = Literal["embed", "embed_tokens", "embed_sparse", "similarity", "rerank", "score", "classify", "entities"]
"""The methods of ServedModel that need a task."""


@dataclass(frozen=True)
class Need:
    """`own`: the tasks that a model with the ability is made for; `others` have it, too."""

    own: tuple[Task, ...]
    refusal: str
    others: tuple[Task, ...] = ()


NEEDS: Mapping[Ability, Need] = {
    "embed": Need(("embedding",), "Model is not an embedding model"),
    "embed_tokens": Need(("embedding",), "Model is not an embedding model", ("multi_vector",)),
    "embed_sparse": Need(("sparse",), "Model is not an embedding model with SPLADE pooling"),
    "similarity": Need(("embedding",), "Model is not an embedding model"),
    "rerank": Need(("reranker", "list_reranker"), "model is not a re-ranker model", ("multi_vector",)),
    "score": Need(("reranker",), "Model scores no pairs", ("multi_vector", "embedding")),
    "classify": Need(("classifier",), "Model is not a classifier model", ("reranker",)),
    "entities": Need(("entities",), "Model is not a token classification model"),
}


def is_own(checkpoint: Checkpoint, ability: Ability) -> bool:
    """Whether an ability is what a checkpoint is made for: a reranker classifies, too, but a classifier is made for
    it."""
    return checkpoint.task in NEEDS[ability].own


def has(checkpoint: Checkpoint, ability: Ability) -> bool:
    """Whether a checkpoint has an ability. BGE-M3 is an embedder that has sparse vectors, too."""
    if ability == "embed_sparse" and checkpoint.m3 is not None:
        return True
    return checkpoint.task in (*NEEDS[ability].own, *NEEDS[ability].others)
