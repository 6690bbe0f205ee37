"""The task of a checkpoint, by its own files, and the names and scores of its outputs."""

import logging
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from bei.architectures.family import HeadKind
from bei.architectures.spec import Dense
from bei.checkpoint.modules import Modules
from bei.errors import SetupError, short
from bei.settings import PoolingSetting

log = logging.getLogger("bei")

Task = Literal["embedding", "reranker", "list_reranker", "classifier", "entities", "sparse", "multi_vector"]
Scoring = Literal["sigmoid", "softmax", "identity"]
"""The function from logits to scores."""

STANFORD_COLBERT = "HF_ColBERT"
_SCORING_HEADS = ("SequenceClassification", "TokenClassification")
_OWN_HEADS: Mapping[HeadKind, tuple[str, ...]] = {
    "RewardModel": ("Qwen2ForRewardModel",),
    "Ranking": ("JinaForRanking",),
}
"""Classes whose head is known: it is their repositories' own code."""
_NO_HEAD = ("", "CausalLM", "PreTraining")
_BY_PROBLEM: dict[str, Scoring] = {
    "regression": "identity",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
_TORCH_SCORINGS: dict[str, Scoring] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "identity"}


def detect(
    config: Mapping[str, Any], modules: Modules, *, colbert: bool, has_template: bool, pooling: PoolingSetting | None
) -> Task:
    """The task of a config.json and a modules.json. `colbert`: the checkpoint says that it is one; `has_template`:
    there is a template by which a language model scores pairs; `pooling` is the user's. Raises SetupError where they
    contradict each other, and for a head that is not served."""
    if modules.sparse:
        return "sparse"
    if modules.score_tokens and not has_template:
        raise SetupError("modules.json: a LogitScore needs the template it was trained with: set BEI_RERANK_TEMPLATE")
    if modules.cross_encoder and (modules.pooling or not config_scores(config)):
        return _cross_encoder(config, modules, has_template)
    if modules.pooling is not None:
        return "embedding"
    if colbert or modules.token_head or modules.mask is not None:
        return "multi_vector"
    return _by_class(config, has_template, pooling)


def _cross_encoder(config: Mapping[str, Any], modules: Modules, has_template: bool) -> Task:
    """The task of a CrossEncoder that is not a *ForSequenceClassification: its scores come from a Dense, or from the
    logits of a language model."""
    if has_template and modules.pooling is None and _is_causal_lm(config):
        return "reranker"
    if modules.pooling is None or not modules.head or not isinstance(modules.head[-1], Dense):
        raise SetupError(
            "modules.json: a CrossEncoder whose modules end in no Dense, and whose encoder scores nothing itself "
            f"({architecture(config)}); a language model needs its template: set BEI_RERANK_TEMPLATE"
        )
    return "reranker" if modules.head[-1].outputs == 1 else "classifier"


def _by_class(config: Mapping[str, Any], has_template: bool, pooling: PoolingSetting | None) -> Task:
    if pooling is not None and pooling != "splade" and not config_scores(config):
        return "reranker" if has_template and _is_causal_lm(config) else "embedding"
    match head_kind(config):
        case "SequenceClassification":
            return "reranker" if len(labels(config)) == 1 else "classifier"
        case "RewardModel":
            return "reranker"
        case "Ranking":
            return "list_reranker"
        case "TokenClassification":
            return "entities"
        case "MaskedLM" if pooling == "splade":
            return "sparse"
        case None if has_template and _is_causal_lm(config):
            return "reranker"
    if pooling == "splade":
        raise SetupError("pooling `splade` needs the head of a masked language model (*ForMaskedLM)")
    return "embedding"


def config_scores(config: Mapping[str, Any]) -> bool:
    """Whether the files of the encoder include a head that scores texts or tokens."""
    name = architecture(config)
    return any(name in names for names in _OWN_HEADS.values()) or _head(name) in _SCORING_HEADS


def ranks_lists(config: Mapping[str, Any]) -> bool:
    """Whether the model ranks the documents of a query together."""
    return architecture(config) in _OWN_HEADS["Ranking"]


def _is_causal_lm(config: Mapping[str, Any]) -> bool:
    return architecture(config).endswith("ForCausalLM")


def head_kind(config: Mapping[str, Any]) -> HeadKind | None:
    """The kind of head with which the checkpoint was saved; None for a bare encoder. Raises SetupError for one that is
    not served."""
    name = architecture(config)
    given = _head(name)
    kinds: tuple[HeadKind, ...] = get_args(HeadKind)
    for kind in kinds:
        if kind == given and name in _OWN_HEADS.get(kind, (name,)):
            return kind
    if given in _NO_HEAD:
        return None
    raise SetupError(
        f"config.json: {name} is not supported; classifiers and rerankers are *ForSequenceClassification. To serve the "
        "encoder below its head as an embedder, set BEI_POOLING"
    )


def _head(name: str) -> str:
    """The part after `For` in the name of a class; empty if there is none. (RoFormerModel has none.)"""
    found = re.search(r"For([A-Z]\w*)$", name)
    return found[1] if found else ""


def architecture(config: Mapping[str, Any]) -> str:
    name: str = (config.get("architectures") or [""])[0]
    return name


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's outputs. Raises SetupError if config.json does not name them all."""
    names = config.get("id2label")
    if not names:
        raise SetupError(
            f"config.json: {architecture(config)} without `id2label`; add one name for each row of the classifier: "
            '"id2label": {"0": "negative", "1": "positive"}, or set BEI_LABELS to the names: negative,positive'
        )
    if sorted(names, key=str) != sorted(map(str, range(len(names)))):
        raise SetupError(f"config.json: `id2label` must name the rows 0 to {len(names) - 1}, each once")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def with_labels(config: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    """config.json with the names that the settings give to the outputs. Raises SetupError for another number of
    names."""
    stated = config.get("id2label")
    if names and stated and len(stated) != len(names):
        raise SetupError(f"BEI_LABELS has {len(names)} names, and config.json's `id2label` {len(stated)}")
    return {**config, "id2label": {str(i): name for i, name in enumerate(names)}} if names else config


def as_reward(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The score of a reward model is the number itself, unless config.json says otherwise. A model of one score is a
    reward model by its class, or by the last part of its name."""
    by_class, outputs = architecture(config).endswith("ForRewardModel"), len(config.get("id2label") or ())
    by_name = "reward" in name.rstrip("/").rsplit("/", 1)[-1].lower() and config_scores(config) and outputs == 1
    if not by_class and not by_name:
        return config
    log.info("the model is a reward model: its score is the number itself")
    return {
        **config,
        "problem_type": config.get("problem_type") or "regression",
        "id2label": config.get("id2label") if outputs == 1 else {"0": "LABEL_0"},
    }


def labels_of(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """The names of `outputs` scores. The config.json of a bare encoder has none; transformers then names a single score
    LABEL_0. Raises SetupError if several scores have no names."""
    if len(config.get("id2label") or ()) == outputs:
        return labels(config)
    if outputs == 1:
        return ("LABEL_0",)
    raise SetupError(f"config.json: `id2label` must name the {outputs} scores of the model's last module, each once")


def scoring(config: Mapping[str, Any], task: Task) -> Scoring:
    """Softmax for a tagger; else sentence-transformers' activation, if there is one; else by `problem_type`: identity
    for a regression, sigmoid for several labels at once; else sigmoid for one label, and softmax for more. Raises
    SetupError for an activation that is not supported."""
    if task == "entities":
        return "softmax"
    stated = config.get("sentence_transformers") or {}
    stated = stated.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if stated:
        name = stated.rsplit(".", 1)[-1]
        if name not in _TORCH_SCORINGS:
            raise SetupError(
                f"config.json: activation {short(stated)} is not supported; use {', '.join(_TORCH_SCORINGS)}"
            )
        return _TORCH_SCORINGS[name]
    kind = config.get("problem_type")
    if task == "reranker" and kind != "regression":
        return "sigmoid"
    return _BY_PROBLEM.get(str(kind), "softmax")
