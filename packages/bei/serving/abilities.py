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
    """`tasks`: the one whose own ability it is, and others that have it, too."""

    tasks: tuple[Task, ...]
    refusal: str


NEEDS: Mapping[Ability, Need] = {
    "embed": Need(("embedding",), "Model is not an embedding model"),
    "embed_tokens": Need(("embedding", "multi_vector"), "Model is not an embedding model"),
    "embed_sparse": Need(("sparse",), "Model is not an embedding model with SPLADE pooling"),
    "similarity": Need(("embedding",), "Model is not an embedding model"),
    "rerank": Need(("reranker", "multi_vector", "list_reranker"), "model is not a re-ranker model"),
    "score": Need(("reranker", "multi_vector", "embedding"), "Model scores no pairs"),
    "classify": Need(("classifier", "reranker"), "Model is not a classifier model"),
    "entities": Need(("entities",), "Model is not a token classification model"),
}


def is_own(checkpoint: Checkpoint, ability: Ability) -> bool:
    """Whether an ability is what a checkpoint is made for: a reranker classifies, too, but a classifier is made for
    it."""
    return checkpoint.task == NEEDS[ability].tasks[0]


def has(checkpoint: Checkpoint, ability: Ability) -> bool:
    """Whether a checkpoint has an ability. BGE-M3 is an embedder that has sparse vectors, too."""
    if ability == "embed_sparse" and checkpoint.m3 is not None:
        return True
    return checkpoint.task in NEEDS[ability].tasks
