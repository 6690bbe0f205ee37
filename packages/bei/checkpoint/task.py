"""What a checkpoint is for, by its own files, and the names and scores of its outputs."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from bei.architectures.family import HeadKind
from bei.checkpoint.modules import Modules
from bei.errors import SetupError

Task = Literal["embedding", "reranker", "classifier", "entities", "sparse", "multi_vector"]
Scoring = Literal["sigmoid", "softmax", "identity"]
"""How logits become scores."""

STANFORD_COLBERT = "HF_ColBERT"
_TORCH_SCORINGS: dict[str, Scoring] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "identity"}


def detect(config: Mapping[str, Any], modules: Modules, colbert: bool, splade: bool, judge: bool = False) -> Task:
    """The task of a config.json and a modules.json. `colbert`: the checkpoint says that it is one; `splade`: the user
    says so of a masked language model; `judge`: there is a template for a language model to score pairs by. Raises
    SetupError where they contradict each other."""
    if modules.sparse:
        return "sparse"
    if modules.judgement and not judge:
        raise SetupError("modules.json: a LogitScore needs the template it was trained with: set BEI_RERANK_TEMPLATE")
    if modules.pooling is not None:
        return "embedding"
    if colbert or modules.token_head or modules.mask is not None:
        return "multi_vector"
    match head_kind(config):
        case "SequenceClassification":
            return "reranker" if len(labels(config)) == 1 else "classifier"
        case "TokenClassification":
            return "entities"
        case "MaskedLM" if splade:
            return "sparse"
        case None if judge and architecture(config).endswith("ForCausalLM"):
            return "reranker"
    if splade:
        raise SetupError("pooling `splade` needs the head of a masked language model (*ForMaskedLM)")
    return "embedding"


def head_kind(config: Mapping[str, Any]) -> HeadKind | None:
    """The head that the checkpoint was saved with. Raises SetupError for a classifier of another kind."""
    name = architecture(config)
    kind = name.partition("For")[2]
    if kind.endswith("Classification") and kind not in get_args(HeadKind):
        raise SetupError(f"config.json: {name} is not supported; classifiers are *ForSequenceClassification")
    return kind if kind in get_args(HeadKind) else None


def architecture(config: Mapping[str, Any]) -> str:
    return (config.get("architectures") or [""])[0]


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's rows. Raises SetupError where config.json does not say them all."""
    names = config.get("id2label")
    if not names:
        raise SetupError(
            f"config.json: {architecture(config)} without `id2label`; add one name for each row of the classifier: "
            '"id2label": {"0": "negative", "1": "positive"}'
        )
    if sorted(names, key=str) != sorted(map(str, range(len(names)))):
        raise SetupError(f"config.json: `id2label` must name the rows 0 to {len(names) - 1}, each once")
    return tuple(names[str(i)] for i in range(len(names)))


def scoring(config: Mapping[str, Any], task: Task) -> Scoring:
    """Softmax for a tagger. Else sentence-transformers' activation where config.json has one; else sigmoid for one
    label or several at once (`problem_type`), and softmax. Raises SetupError for an activation that we do not have."""
    if task == "entities":
        return "softmax"
    stated = config.get("sentence_transformers") or {}
    stated = stated.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if stated:
        name = stated.rsplit(".", 1)[-1]
        if name not in _TORCH_SCORINGS:
            raise SetupError(f"config.json: activation {stated!r} is not supported; use {', '.join(_TORCH_SCORINGS)}")
        return _TORCH_SCORINGS[name]
    if task == "reranker" or config.get("problem_type") == "multi_label_classification":
        return "sigmoid"
    return "identity" if config.get("problem_type") == "regression" else "softmax"
