"""Reads a folder of files as a Checkpoint: the model's spec, task, tensors by our names, and rules for its texts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bei.architectures import families
from bei.architectures.family import NamedHeadLayer
from bei.architectures.limits import check_counts, check_types
from bei.architectures.positions import RelativeBias
from bei.architectures.spec import Disentangled, EncoderSpec, HeadLayer
from bei.architectures.static import STATIC
from bei.checkpoint import not_served, own_code, static, task_adapters, texts, weights
from bei.checkpoint.adapters import CONFIG, read_adapter
from bei.checkpoint.colbert import LateInteraction, is_pylate
from bei.checkpoint.gliner import encoder_config, encoder_tensors, gliner_tokens, is_gliner
from bei.checkpoint.gliner_head import Gliner
from bei.checkpoint.heads import Served, Source, served_as
from bei.checkpoint.list_reranking import ListTemplate
from bei.checkpoint.lookup import Lookup
from bei.checkpoint.m3 import M3
from bei.checkpoint.modules import MAX_JSON, Modules, read_json, read_limits, read_modules, read_size, special_token
from bei.checkpoint.options import check_options, max_length, with_options
from bei.checkpoint.over_base import adapter_in
from bei.checkpoint.packed import check_quantized
from bei.checkpoint.rerank_file import read_template
from bei.checkpoint.reranking import PairTemplate, pair_template
from bei.checkpoint.similarity import COSINE, Similarity, read_similarity
from bei.checkpoint.task import (
    STANFORD_COLBERT,
    Scoring,
    Task,
    architecture,
    as_reward,
    detect,
    with_labels,
)
from bei.checkpoint.tensors import Tensors
from bei.checkpoint.texts import AS_STATED, NO_SPECIALS, Casing, Prompts, Reading, Specials
from bei.errors import SetupError, one_line, short
from bei.settings import AttentionSetting, ModelSettings, PoolingSetting, RerankTemplate

log = logging.getLogger("bei")

_LONGEST = 1 << 15  # tokens of a model with relative positions alone


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` maps our names (architectures/spec.py) to arrays; bfloat16 ones come as ml_dtypes.bfloat16.

    `max_tokens` is the longest input in tokens, specials included; `token_types` says whether the second text of a pair
    has another type than the first. `dtype` is the stored precision of the weights.
    `added_specials` go around a text, whatever tokenizer.json says. `pair_template` makes one text of a pair. `m3` are
    an embedder's heads for sparse and token vectors. `lookup`: a sparse model's queries need no engine. `gliner`: the
    head of a tagger whose labels the request names. `list_template` makes one text of a query and its documents.
    `labels` names the outputs of a classifier or tagger in their order; `scoring` turns outputs into scores.
    `dimensions`: the size of an embedding for a request that names none (None: all); `max_terms`: of a sparse one.
    `truncation_side` is the end at which a long text is cut; `casing` overrides tokenizer.json. `reading`: the tokens
    of a text that count. `similarity`: of two embeddings.
    """

    name: str
    revision: str | None
    folder: Path
    task: Task
    spec: EncoderSpec
    tensors: Tensors
    tokenizer_file: Path
    max_tokens: int
    token_types: bool
    lowercase: bool
    unknown_token: str | None
    prompts: Prompts
    dtype: str
    labels: tuple[str, ...] = ()
    scoring: Scoring = "identity"
    late_interaction: LateInteraction | None = None
    pair_template: PairTemplate | None = None
    added_specials: Specials = NO_SPECIALS
    m3: M3 | None = None
    lookup: Lookup | None = None
    gliner: Gliner | None = None
    list_template: ListTemplate | None = None
    dimensions: int | None = None
    max_terms: int | None = None
    truncation_side: Literal["left", "right"] = "right"
    casing: Casing = AS_STATED
    reading: Reading = "with specials"
    similarity: Similarity = COSINE

    @property
    def width(self) -> int | None:
        """The number of an embedding's dimensions; None for a model that scores."""
        if self.task == "multi_vector":
            return self.spec.token_size
        return self.dimensions or self.spec.row_size if self.task in ("embedding", "sparse") else None


_FROM_JSON = (
    "spec",
    "max_tokens",
    "lowercase",
    "unknown_token",
    "prompts",
    "labels",
    "late_interaction",
    "added_specials",
    "truncation_side",
    "casing",
)


def read_for(settings: ModelSettings, folder: Path, revision: str | None) -> Checkpoint:
    """Read the folder that the settings' checkpoint was fetched into. Raises SetupError."""
    checkpoint = read(
        *(folder, settings.public_repo, revision),
        max_num_tokens=settings.max_text_tokens,
        pooling=settings.pooling,
        rerank_template=settings.rerank_template,
        attention=settings.attention,
        task_adapter=settings.task_adapter,
        cache_dir=settings.cache_dir,
        label_names=settings.labels,
    )
    if (settings.max_seq_len or 0) > checkpoint.max_tokens:
        log.warning("max_seq_len %d: this model reads %d tokens", settings.max_seq_len, checkpoint.max_tokens)
    return checkpoint


@dataclass(frozen=True)
class _Overrides:
    """Settings for what a checkpoint itself does not say."""

    pooling: PoolingSetting | None
    rerank_template: RerankTemplate | Path | None
    attention: AttentionSetting | None
    task_adapter: str | None
    cache_dir: Path
    label_names: tuple[str, ...]


def read(
    folder: Path,
    name: str,
    revision: str | None = None,
    max_num_tokens: int = 1 << 20,
    pooling: PoolingSetting | None = None,
    rerank_template: RerankTemplate | Path | None = None,
    attention: AttentionSetting | None = None,
    task_adapter: str | None = None,
    cache_dir: Path = Path("~/.cache/bei"),
    label_names: tuple[str, ...] = (),
) -> Checkpoint:
    """Read a folder in the Hugging Face layout and check all of it: no tensor is missing or left over, all shapes fit.

    `pooling` applies to a checkpoint without modules.json. `rerank_template` is the template by which a language model
    scores pairs; the default depends on the model's name (checkpoint/reranking.py). `attention` decides between causal
    and bidirectional for a decoder whose own code does (checkpoint/own_code.py). `task_adapter` names one of a
    checkpoint's task adapters (checkpoint/task_adapters.py). `cache_dir` keeps a tokenizer.json that was built from
    other files. `label_names` are names of outputs. Raises SetupError.
    """
    overrides = _Overrides(pooling, rerank_template, attention, task_adapter, cache_dir, label_names)
    try:
        checkpoint = _read(folder, name, revision, max_num_tokens, overrides)
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
        # The JSON files of a checkpoint may hold anything.
        raise SetupError(
            f"{folder} cannot be read: {type(exc).__name__}: {one_line(exc)}; is one of its files broken?"
        ) from exc
    for field_name in _FROM_JSON:
        check_types(getattr(checkpoint, field_name), get_type_hints(Checkpoint)[field_name], field_name)
    texts.check_prompts(checkpoint.prompts)
    return checkpoint


def described(
    folder: Path,
    name: str,
    cache_dir: Path,
    attention: AttentionSetting | None = None,
    task_adapter: str | None = None,
    pooling: PoolingSetting | None = None,
) -> tuple[Task, EncoderSpec]:
    """The task and the spec of a folder, by its JSON files: its weights are not read. Raises SetupError."""
    overrides = _Overrides(pooling, None, attention, task_adapter, cache_dir, ())
    source = _open(folder, name, overrides)
    task = _task(source, overrides)
    return task, _with_heads(source.spec, served_as(task, source))


def _read(folder: Path, name: str, revision: str | None, max_num_tokens: int, overrides: _Overrides) -> Checkpoint:
    source = _open(folder, name, overrides)
    task = _task(source, overrides)
    served = served_as(task, source)
    spec, encoder = _with_heads(source.spec, served), source.modules.encoder
    parts = {**_weights(source, spec, served, task), **served.modules.tensors}
    weights.check_shapes(parts, spec)
    dimensions = read_size(folder, "truncate_dim")
    checkpoint = Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        task=task,
        spec=spec,
        tensors=Tensors(parts),
        tokenizer_file=source.tokenizer_file,
        max_tokens=texts.max_tokens(encoder, source.limits, spec, max_num_tokens),
        token_types=spec.type_count > 1 and texts.reads_types(encoder),
        lowercase=bool(source.limits.get("do_lower_case", False)),
        unknown_token=special_token(encoder, "unk_token"),
        prompts=_prompts(source, served),
        dtype=parts["embeddings.token"][0].dtype,
        labels=served.labels,
        scoring=served.scoring,
        late_interaction=served.late_interaction,
        pair_template=served.pair_template,
        added_specials=texts.added_specials(encoder),
        m3=served.m3,
        lookup=served.lookup,
        gliner=served.gliner,
        list_template=served.list_template,
        dimensions=min(dimensions, spec.row_size) if dimensions else None,
        max_terms=read_size(folder, "max_active_dims"),
        casing=texts.casing(encoder),
        truncation_side=read_json(encoder / "tokenizer_config.json").get("truncation_side") or "right",
        similarity=read_similarity(folder, source.modules) if task == "embedding" else COSINE,
    )
    return checkpoint if source.modules.static is None else _as_static(checkpoint, source.modules, max_num_tokens)


def _as_static(checkpoint: Checkpoint, modules: Modules, max_num_tokens: int) -> Checkpoint:
    """StaticEmbedding and Model2Vec read tokenizer.json alone, and put no special tokens around a text."""
    return replace(
        checkpoint,
        max_tokens=min(checkpoint.spec.max_tokens, max_num_tokens),
        added_specials=NO_SPECIALS,
        casing=AS_STATED,
        truncation_side="right",
        reading="known" if modules.static == "model2vec" else "bare",
    )


def _open(folder: Path, name: str, overrides: _Overrides) -> Source:
    """The content of the files, before the task is known."""
    modules = read_modules(folder)
    config = encoder_config(folder) if is_gliner(folder) else read_json(modules.encoder / "config.json")
    if modules.static is not None:
        return _open_static(folder, modules, overrides.cache_dir)
    not_served.check(config)
    if not config:
        raise SetupError(
            f"{modules.encoder / 'config.json'} is missing; is {folder} a model in the Hugging Face layout?"
        )
    limits = read_limits(modules.encoder)
    check_options(limits)
    config = own_code.with_attention(with_options(config, limits), overrides.attention)
    task_adapter = task_adapters.chosen(config, overrides.task_adapter)
    config = config if task_adapter is None else {**config, "lora_adaptations": None}
    check_quantized(config)
    config = as_reward(with_labels(config, overrides.label_names), name)
    family = families.family(config)
    check_counts(config)
    spec = _reaching(family.spec(config), _stated_length(folder, limits))
    own_code.check(config, spec, overrides.attention)
    return Source(
        folder=folder,
        config=config,
        modules=modules,
        family=family,
        spec=spec,
        limits=limits,
        tokenizer_file=_tokenizer_file(folder, modules, overrides.cache_dir),
        pooling=overrides.pooling,
        template=_template(folder, config, name, overrides.rerank_template),
        task_adapter=task_adapter,
    )


def _stated_length(folder: Path, limits: Mapping[str, Any]) -> int | None:
    return gliner_tokens(folder) if is_gliner(folder) else max_length(limits)


def _reaching(spec: EncoderSpec, stated: int | None) -> EncoderSpec:
    """A relative bias is the same for all distances beyond its last, so a model without other positions may read more
    tokens than config.json says, if its module states so."""
    unbounded = isinstance(spec.relative_bias, RelativeBias | Disentangled) and spec.position_offset is None
    if not unbounded or stated is None:
        return spec
    return replace(spec, max_tokens=max(spec.max_tokens, min(int(stated), _LONGEST)))


def _template(
    folder: Path, config: Mapping[str, Any], name: str, setting: RerankTemplate | Path | None
) -> PairTemplate | None:
    return read_template(setting) if isinstance(setting, Path) else pair_template(folder, config, name, setting)


def _open_static(folder: Path, modules: Modules, cache_dir: Path) -> Source:
    tokenizer_file = _tokenizer_file(folder, modules, cache_dir)
    (table,) = static.table_of(modules.encoder, weights.stored_tensors(modules.encoder)).values()
    config = static.config_of(table, tokenizer_file, model2vec=modules.static == "model2vec")
    check_counts(config)
    return Source(
        folder=folder,
        config=config,
        modules=modules,
        family=STATIC,
        spec=STATIC.spec(config),
        limits={},
        tokenizer_file=tokenizer_file,
        pooling=None,
        template=None,
    )


def _task(source: Source, overrides: _Overrides) -> Task:
    colbert = architecture(source.config) == STANFORD_COLBERT or is_pylate(source.folder)
    has_template = source.template is not None
    task: Task = "entities"
    if not is_gliner(source.folder):
        task = detect(
            source.config, source.modules, colbert=colbert, has_template=has_template, pooling=overrides.pooling
        )
    elif overrides.label_names:
        log.warning("BEI_LABELS has no effect: each request names the labels of a GLiNER")
    if overrides.pooling is not None and (task not in ("embedding", "sparse") or source.modules.pooling):
        log.warning("BEI_POOLING has no effect: the checkpoint, whose task is %s, states its pooling", task)
    if overrides.label_names and task not in ("reranker", "classifier", "entities"):
        log.warning("BEI_LABELS has no effect: the checkpoint's task is %s", task)
    if has_template and overrides.rerank_template is not None and task != "reranker":
        log.warning("BEI_RERANK_TEMPLATE has no effect: the checkpoint's task is %s", task)
    return task


def _weights(source: Source, spec: EncoderSpec, served: Served, task: Task) -> weights.Parts:
    stored = weights.stored_tensors(source.modules.encoder)
    if source.modules.static is not None:
        stored = static.table_of(source.modules.encoder, stored)
    if task == "embedding" and source.modules.pooling is None:
        weights.tell_of_scores(stored, architecture(source.config))
    if is_gliner(source.folder):
        stored = encoder_tensors(source.folder, stored)
    if source.task_adapter is not None:
        stored = task_adapters.merged(stored, source.task_adapter)
    adapter, place = read_adapter(source.modules.encoder, architecture(source.config)), adapter_in(source.folder)
    if adapter is None and place is not None:
        raise SetupError(
            f"{source.folder / place / CONFIG}: the encoder is in {source.modules.encoder}, where its adapter belongs"
        )
    return weights.find(source.modules.encoder, stored, source.family, source.config, spec, served.own, adapter)


def _with_heads(spec: EncoderSpec, served: Served) -> EncoderSpec:
    modules, own = served.modules, served.own
    return replace(
        spec,
        token_head=(*_layers(own.token_layers), *modules.token_head),
        pooling=modules.pooling or own.pooling,
        head=(*_layers(own.layers), *modules.head),
    )


def _layers(own: tuple[NamedHeadLayer, ...]) -> tuple[HeadLayer, ...]:
    return tuple(layer for layer, _ in own)


def _tokenizer_file(folder: Path, modules: Modules, cache_dir: Path) -> Path:
    for file in (modules.encoder / "tokenizer.json", folder / "tokenizer.json"):
        if file.exists():
            if file.stat().st_size > MAX_JSON:
                raise SetupError(f"{file} is larger than {MAX_JSON} bytes, the most that is read")
            return file
    from bei.checkpoint import vocabulary  # importing it takes a thirtieth of a start, and few checkpoints need it

    return vocabulary.kept(modules.encoder, cache_dir)


def _prompts(source: Source, served: Served) -> Prompts:
    config, late = read_json(source.folder / "config_sentence_transformers.json"), served.late_interaction
    by_name = {name: text for name, text in (config.get("prompts") or {}).items() if text is not None}
    by_name |= dict.fromkeys(("query", "document"), "") | by_name if served.lookup else {}
    for role, marker in (late.markers if late else {}).items():
        by_name[role] = marker + by_name.get(role, "").removeprefix(marker)
    default = config.get("default_prompt_name")
    if default is not None and default not in by_name:
        raise SetupError(
            f"config_sentence_transformers.json: default_prompt_name {short(default)} is not among its prompts"
        )
    before_pairs = source.modules.cross_encoder and served.pair_template is None
    adapter = None if source.task_adapter is None else source.task_adapter.name
    return Prompts(by_name, default, before_pairs, adapter)
