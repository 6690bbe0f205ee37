"""The head of each task, by one function per task: from a checkpoint's files to the head and the scoring."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bei.architectures.config import stated_pooling
from bei.architectures.family import Family, HeadKind, TaskHead
from bei.architectures.spec import Dense, Disentangled, EncoderSpec, HeadLayer, Normalize, Pooling
from bei.checkpoint.colbert import LateInteraction, is_pylate, read_late_interaction
from bei.checkpoint.gliner import CONFIG, PROJECTION, is_gliner, projection, read_gliner
from bei.checkpoint.gliner_head import Gliner
from bei.checkpoint.list_reranking import ListTemplate, list_template
from bei.checkpoint.lookup import Lookup, read_lookup
from bei.checkpoint.m3 import M3, read_m3
from bei.checkpoint.modules import Modules, read_json, splade
from bei.checkpoint.reranking import PairTemplate, score_tokens_of, scoring_head, warn_of_markers
from bei.checkpoint.task import (
    STANFORD_COLBERT,
    Scoring,
    Task,
    architecture,
    config_scores,
    head_kind,
    labels,
    labels_of,
    scoring,
)
from bei.checkpoint.task_adapters import TaskAdapter
from bei.errors import SetupError, short
from bei.settings import PoolingSetting

log = logging.getLogger("bei")

_RANKED = 512
"""The size of JinaForRanking's rows, which config.json does not state."""


@dataclass(frozen=True)
class Source:
    """A checkpoint's files before its task is known. `spec` is that of the encoder alone, `limits` is
    sentence_bert_config.json, `pooling` is the setting, and `template` is that of a language model's pairs."""

    folder: Path
    config: Mapping[str, Any]
    modules: Modules
    family: Family
    spec: EncoderSpec
    limits: Mapping[str, Any]
    tokenizer_file: Path
    pooling: PoolingSetting | None
    template: PairTemplate | None
    task_adapter: TaskAdapter | None = None


@dataclass(frozen=True)
class Served:
    """`own` is the head in the encoder's own files; it comes before the layers of `modules`."""

    modules: Modules
    own: TaskHead
    labels: tuple[str, ...] = ()
    scoring: Scoring = "identity"
    late_interaction: LateInteraction | None = None
    pair_template: PairTemplate | None = None
    m3: M3 | None = None
    lookup: Lookup | None = None
    gliner: Gliner | None = None
    list_template: ListTemplate | None = None


def served_as(task: Task, source: Source) -> Served:
    """Raises SetupError for a checkpoint that lacks what its task needs."""
    if source.modules.queries is not None and task != "sparse":
        raise SetupError(
            f"modules.json: a Router with a SparseStaticEmbedding, and the task of its documents is {task}"
        )
    return _TASKS[task](source)


def _embedding(source: Source) -> Served:
    pooling = source.modules.pooling or _pooling(source.family, source.config, source.pooling)
    own = TaskHead(source.family.token_layers(source.config, source.spec), pooling)
    return Served(source.modules, own, m3=read_m3(source.folder, source.spec.hidden_size))


def _multi_vector(source: Source) -> Served:
    modules, stanford = source.modules, architecture(source.config) == STANFORD_COLBERT
    if source.spec.decoder is not None:
        raise SetupError("config.json: a ColBERT whose encoder has a decoder (BART) is not served")
    if is_pylate(source.folder):  # its norm is not in modules.json
        modules = replace(modules, token_head=(*modules.token_head, Normalize()))
    late = read_late_interaction(source.folder, modules, source.limits, stanford)
    _check_padding(source.spec, late)
    return Served(
        modules, _stanford_head(source.spec, modules.encoder) if stanford else TaskHead(), late_interaction=late
    )


def _check_padding(spec: EncoderSpec, late: LateInteraction) -> None:
    """Raises SetupError for padded queries of a model that hides padding elsewhere than in its scores."""
    hides = isinstance(spec.relative_bias, Disentangled) or spec.dropped_token is not None
    if late.expansion and not late.attend and hides:
        raise SetupError(
            "a ColBERT model of DeBERTa, XLNet or ESM whose queries are padded by tokens that are not attended to is "
            "not served: its library hides them in a way of its own"
        )


def _sparse(source: Source) -> Served:
    modules = source.modules
    if not modules.sparse:
        saturation, pooled = splade()
        modules = replace(modules, head=tuple(saturation["head"]), pooling=pooled)
    lookup = read_lookup(modules, source.tokenizer_file, source.spec.vocab_size)
    return Served(modules, _own_head(source, "MaskedLM", source.spec.vocab_size), lookup=lookup)


def _entities(source: Source) -> Served:
    if is_gliner(source.folder):
        return _named_entities(source)
    names = labels(source.config)
    return Served(source.modules, _own_head(source, "TokenClassification", len(names)), names, "softmax")


def _named_entities(source: Source) -> Served:
    if source.spec.causal or source.spec.decoder is not None:
        raise SetupError(f"{CONFIG}: an encoder that reads only the tokens before each one is not supported")
    layer = projection(source.folder, source.spec)
    own = TaskHead() if layer is None else TaskHead(((layer, (PROJECTION,)),))
    return Served(source.modules, own, (), "sigmoid", gliner=read_gliner(source.folder))


def _list_reranker(source: Source) -> Served:
    if not source.spec.causal:
        raise SetupError("config.json: a bidirectional model that ranks lists is not supported")
    own = _own_head(source, "Ranking", _RANKED)
    return Served(source.modules, own, scoring="identity", list_template=list_template(source.spec))


def _scored(task: Task) -> Callable[[Source], Served]:
    def served(source: Source) -> Served:
        scored = scoring({**source.config, **_activation(source.folder)}, task)
        names, modules, scoring_template = _names(source), source.modules, _scoring_template(source)
        template = source.template if task == "reranker" else None
        tokenizer = read_json(source.tokenizer_file) if template else {}
        if template:
            warn_of_markers(template, tokenizer)
        if template and scoring_template:
            words = modules.score_tokens or score_tokens_of(scoring_template, tokenizer, source.tokenizer_file)
            temperature = 1.0 if modules.score_tokens else scoring_template.temperature
            return Served(
                modules,
                scoring_head(source.config, source.spec, words, temperature),
                names,
                scored,
                pair_template=_prompted(source, scoring_template),
            )
        own = TaskHead(pooling=modules.pooling) if modules.pooling else _classifier(source, len(names))
        return Served(modules, own, names, scored, pair_template=template)

    return served


def _names(source: Source) -> tuple[str, ...]:
    template = _scoring_template(source)
    if template is not None:
        return (template.yes or "yes",)
    if source.modules.pooling is not None:
        return labels_of(source.config, _outputs(source.modules.head))
    return labels(source.config)


def _outputs(layers: tuple[HeadLayer, ...]) -> int:
    """The outputs of the last Dense. Raises SetupError if there is none."""
    for layer in reversed(layers):
        if isinstance(layer, Dense):
            return layer.outputs
    raise SetupError("modules.json: a model that scores needs a Dense module after its Pooling")


def _scoring_template(source: Source) -> PairTemplate | None:
    """The template of a language model whose logits are the score; None for another model."""
    return None if source.modules.pooling or config_scores(source.config) else source.template


def _prompted(source: Source, template: PairTemplate) -> PairTemplate:
    """The template, with a CrossEncoder's default prompt as its instruction."""
    saved = read_json(source.folder / "config_sentence_transformers.json")
    prompt = (saved.get("prompts") or {}).get(saved.get("default_prompt_name"))
    if not prompt:
        return template
    if not template.takes_instruction:
        raise SetupError("config_sentence_transformers.json: default_prompt_name: this rerank template takes none")
    return replace(template, instruction=prompt)


def _classifier(source: Source, outputs: int) -> TaskHead:
    kind: HeadKind = "RewardModel" if head_kind(source.config) == "RewardModel" else "SequenceClassification"
    return _own_head(source, kind, outputs)


def _own_head(source: Source, kind: HeadKind, outputs: int) -> TaskHead:
    family, config = source.family, source.config
    if kind not in family.heads:
        raise SetupError(
            f"config.json: {architecture(config)}: {short(config['model_type'])} is not supported with this head"
        )
    return family.head(kind, config, source.spec, outputs)


def _stanford_head(spec: EncoderSpec, folder: Path) -> TaskHead:
    """The projection of Stanford's ColBERT, stored beside its encoder, and the norm after it."""
    size = read_json(folder / "artifact.metadata").get("dim", 128)
    return TaskHead(((Dense(spec.hidden_size, size, False, "identity"), ("linear",)), (Normalize(), ())))


def _pooling(family: Family, config: Mapping[str, Any], pooling: PoolingSetting | None) -> Pooling:
    """The setting's pooling, else config.json's, else the family's default. As in TEI (router/src/lib.rs) that is the
    first token for BERT and similar models, and the last for causal ones."""
    if pooling is not None and pooling != "splade":  # which is a head of its own
        return Pooling((pooling,))
    stated = stated_pooling(config)
    if stated is not None:
        return stated
    if family.pooling is None:
        raise SetupError(
            f"1_Pooling/config.json is missing and {short(config['model_type'])} has no default pooling; "
            "add the file, or set BEI_POOLING"
        )
    (mode,) = family.pooling.modes
    log.warning("no modules.json: pooling the %s token; if the model was trained with another, set BEI_POOLING", mode)
    return family.pooling


def _activation(folder: Path) -> dict[str, Any]:
    """The activation of a CrossEncoder, where sentence-transformers 6 keeps it; older versions wrote it to
    config.json."""
    stated = read_json(folder / "config_sentence_transformers.json").get("activation_fn")
    return {"sentence_transformers": {"activation_fn": stated}} if stated else {}


_TASKS: dict[Task, Callable[[Source], Served]] = {
    "embedding": _embedding,
    "reranker": _scored("reranker"),
    "list_reranker": _list_reranker,
    "classifier": _scored("classifier"),
    "entities": _entities,
    "sparse": _sparse,
    "multi_vector": _multi_vector,
}
