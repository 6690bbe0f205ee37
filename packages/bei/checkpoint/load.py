"""A folder of files becomes a Checkpoint: what the model is, and for, its tensors by our names, how texts are read."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from bei import architectures
from bei.architectures.family import Family, Head, HeadStage, Judgement, Rows
from bei.architectures.limits import check_counts, check_types
from bei.architectures.shapes import tensor_shapes
from bei.architectures.spec import Dense, EncoderSpec, LayerNorm, Normalize, Pooling, Stage
from bei.checkpoint.colbert import LateInteraction, is_pylate, read_late_interaction
from bei.checkpoint.m3 import M3, read_m3
from bei.checkpoint.modules import (
    MAX_JSON,
    Modules,
    inside,
    read_json,
    read_limits,
    read_modules,
    read_size,
    special_token,
    splade,
)
from bei.checkpoint.reranking import PairTemplate, judge, judgement_of, pair_template
from bei.checkpoint.task import STANFORD_COLBERT, Scoring, Task, architecture, detect, head_kind, labels, scoring
from bei.checkpoint.tensors import Tensor, Tensors, scan, with_scales
from bei.errors import SetupError
from bei.settings import PoolingSetting, RerankTemplate, Settings

log = logging.getLogger("bei")

_NO_LIMIT = 1_000_000  # tokenizers without a length write 1e30 into model_max_length


@dataclass(frozen=True)
class Prompts:
    """Texts put before an input by name (config_sentence_transformers.json); `default` names the one used unasked."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None


@dataclass(frozen=True)
class Specials:
    """Tokens at the beginning and the end of a text."""

    first: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` maps our names (architectures/spec.py) to arrays; bfloat16 ones come as ml_dtypes.bfloat16.

    `max_tokens` is the longest input in tokens, specials included; `token_types` says whether the second text of a pair
    has another type than the first. `dtype` is the stored precision of the weights.
    `added_specials` go around a text, whatever its tokenizer.json says; `pair_template` makes one text of a pair; `m3`
    are an embedder's heads for sparse and token vectors.
    `labels` names a classifier's or tagger's outputs in their order, and `scoring` makes scores of them.
    `dimensions` are those of an embedding that is asked for without, None for all; a sparse one has `max_terms`.
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
    added_specials: Specials = Specials()
    m3: M3 | None = None
    dimensions: int | None = None
    max_terms: int | None = None


_FROM_JSON = (
    "spec",
    "max_tokens",
    "lowercase",
    "unknown_token",
    "prompts",
    "labels",
    "late_interaction",
    "added_specials",
)


def read_for(settings: Settings, folder: Path, revision: str | None) -> Checkpoint:
    """Read the folder that the settings' checkpoint was fetched into. Raises SetupError."""
    return read(
        *(folder, settings.public_repo, revision),
        max_num_tokens=settings.max_num_tokens,
        pooling=settings.pooling,
        rerank_template=settings.rerank_template,
    )


def read(
    folder: Path,
    name: str,
    revision: str | None = None,
    max_num_tokens: int = 1 << 20,
    pooling: PoolingSetting | None = None,
    rerank_template: RerankTemplate | None = None,
) -> Checkpoint:
    """Read a folder in the Hugging Face layout, checked whole: every tensor is there, none is left over, shapes fit.

    `pooling` is what a checkpoint without modules.json pools by, `rerank_template` how a language model is asked for a
    score; without one its name says whether it is (checkpoint/reranking.py). Raises SetupError.
    """
    try:
        checkpoint = _read(folder, name, revision, max_num_tokens, pooling, rerank_template)
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
        # Whoever made a checkpoint may have written anything into its JSON files.
        raise SetupError(f"{folder} cannot be read: {type(exc).__name__}: {exc}; is one of its files broken?") from exc
    for field_name in _FROM_JSON:
        check_types(getattr(checkpoint, field_name), get_type_hints(Checkpoint)[field_name], field_name)
    return checkpoint


def _read(
    folder: Path,
    name: str,
    revision: str | None,
    max_num_tokens: int,
    pooling: PoolingSetting | None,
    rerank_template: RerankTemplate | None,
) -> Checkpoint:
    modules = read_modules(folder)
    config = read_json(modules.encoder / "config.json")
    if not config:
        raise SetupError(
            f"{modules.encoder / 'config.json'} is missing; is {folder} a model in the Hugging Face layout?"
        )
    family = architectures.family(config)
    check_counts(config)
    stanford, pylate = architecture(config) == STANFORD_COLBERT, is_pylate(folder)
    template = pair_template(config, name, rerank_template)
    task = detect(config, modules, stanford or pylate, splade=pooling == "splade", judge=template is not None)
    if pylate:  # its norm is not in modules.json
        modules = replace(modules, token_head=(*modules.token_head, Normalize()))
    if task == "sparse" and not modules.sparse:
        saturation, pooled = splade()
        modules = replace(modules, head=tuple(saturation["head"]), pooling=pooled)
    tokenizer_file = _tokenizer_file(folder, modules)
    judged = task == "reranker" and head_kind(config) is None
    if judged:
        own = judge(family.spec(config), modules.judgement or judgement_of(template, tokenizer_file))
    else:
        own = _own_head(family, config, modules, task, pooling)
    spec = _with_heads(family.spec(config), modules, own)
    parts = {**_tensors(modules.encoder, family, config, spec, own), **modules.tensors}
    _check_shapes(parts, spec)
    limits = read_limits(modules.encoder)
    late = None if task != "multi_vector" else read_late_interaction(folder, modules, limits, stanford)
    scored = task in ("reranker", "classifier", "entities")
    dimensions = read_size(folder, "truncate_dim")
    return Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        task=task,
        spec=spec,
        tensors=Tensors(parts),
        tokenizer_file=tokenizer_file,
        max_tokens=_max_tokens(modules.encoder, limits, spec, max_num_tokens),
        token_types=spec.token_types > 1 and _reads_types(modules.encoder),
        lowercase=bool(limits.get("do_lower_case", False)),
        unknown_token=special_token(modules.encoder, "unk_token"),
        prompts=_prompts(folder, late),
        dtype=parts["embeddings.token"][0].dtype,
        labels=(template.yes,) if judged else labels(config) if scored else (),
        scoring=scoring({**config, **_activation(folder)}, task) if scored else "identity",
        late_interaction=late,
        pair_template=template if task == "reranker" else None,
        added_specials=_added_specials(modules.encoder),
        m3=read_m3(folder, spec.hidden_size) if task == "embedding" else None,
        dimensions=min(dimensions, spec.row_size) if dimensions else None,
        max_terms=read_size(folder, "max_active_dims"),
    )


def _own_head(
    family: Family, config: Mapping[str, Any], modules: Modules, task: Task, pooling: PoolingSetting | None
) -> Head:
    """The head whose tensors the encoder's own files hold."""
    spec = family.spec(config)
    match task:
        case "embedding":
            return Head(pooling=modules.pooling or _pooling(family, config, pooling))
        case "multi_vector":
            stanford = architecture(config) == STANFORD_COLBERT
            return _stanford_head(spec, modules.encoder) if stanford else Head()
        case "sparse":
            kind, outputs = "MaskedLM", spec.vocab_size
        case "entities":
            kind, outputs = "TokenClassification", len(labels(config))
        case _:
            kind, outputs = "SequenceClassification", len(labels(config))
    if kind not in family.heads:
        raise SetupError(f"config.json: {architecture(config)}: {config['model_type']!r} has no such head here")
    return family.heads[kind](config, spec, outputs)


def _with_heads(spec: EncoderSpec, modules: Modules, own: Head) -> EncoderSpec:
    return replace(
        spec,
        token_head=(*_stages(own.token_stages), *modules.token_head),
        pooling=modules.pooling or own.pooling,
        head=(*_stages(own.stages), *modules.head),
    )


def _stages(own: tuple[HeadStage, ...]) -> tuple[Stage, ...]:
    return tuple(stage for stage, _ in own)


def _pooling(family: Family, config: Mapping[str, Any], pooling: PoolingSetting | None) -> Pooling:
    """The setting's, else the family's: as TEI's, the first token for BERT and its kin (router/src/lib.rs), and the
    last for causal ones."""
    if pooling is not None:
        return Pooling((pooling,))
    if family.pooling is None:
        raise SetupError(
            f"1_Pooling/config.json is missing and {config['model_type']!r} has no default pooling; "
            "add the file, or set BEI_POOLING"
        )
    (mode,) = family.pooling.modes
    log.warning("no modules.json: pooling the %s token; if the model was trained otherwise, set BEI_POOLING", mode)
    return family.pooling


def _tensors(
    folder: Path, family: Family, config: Mapping[str, Any], spec: EncoderSpec, head: Head
) -> dict[str, tuple[Tensor, ...]]:
    """Find each of our tensors in the checkpoint's files. Raises SetupError that lists what is missing or left over."""
    stored = _renamed(with_scales(_stored(folder)), _modern)
    names = dict(family.tensors(config, spec))
    (first,) = names["embeddings.token"]
    prefix = next((p for p in family.prefixes if f"{p}{first}" in stored), None)
    if prefix is None:
        raise SetupError(f"{folder}: no tensor {first!r} in its safetensors files; is config.json's model_type right?")
    stored = _renamed(stored, lambda name: name.removeprefix(prefix))
    for part, stages in (("token_head", head.token_stages), ("head", head.stages)):
        names |= _head_names(part, stages, stored)
    if head.judgement is not None:
        names["head.0.weight"] = (_judged(*names["head.0.weight"], head.judgement),)
    wanted = [_name(theirs) for parts in names.values() for theirs in parts]
    missing = [theirs for theirs in wanted if theirs not in stored]
    if missing:
        raise SetupError(f"{folder}: tensors missing: {_some(missing)}")
    ignored = re.compile("|".join(family.ignored))
    left = [name for name in stored.keys() - set(wanted) if not ignored.match(name)]
    if left:
        raise SetupError(f"{folder}: tensors that config.json does not account for: {_some(sorted(left))}")
    return {ours: tuple(_part(stored, theirs) for theirs in parts) for ours, parts in names.items()}


def _judged(matrix: str, judgement: Judgement) -> Rows:
    return Rows(matrix, judgement.yes, judgement.yes + 1, judgement.no)


def _name(theirs: str | Rows) -> str:
    return theirs.name if isinstance(theirs, Rows) else theirs


def _part(stored: Mapping[str, Tensor], theirs: str | Rows) -> Tensor:
    if isinstance(theirs, Rows):
        return stored[theirs.name].rows(theirs.start, theirs.stop, theirs.less)
    return stored[theirs]


def _head_names(part: str, stages: tuple[HeadStage, ...], stored: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Our name of each tensor → the first of its places that is stored, else the place to say it is missing from."""
    names = {}
    for i, (stage, modules) in enumerate(stages):
        if not modules:
            continue
        has_bias = isinstance(stage, (Dense, LayerNorm)) and stage.bias
        for tensor in ("weight", "bias") if has_bias else ("weight",):
            places = [f"{module}.{tensor}" for module in modules]
            names[f"{part}.{i}.{tensor}"] = (next((place for place in places if place in stored), places[0]),)
    return names


def _stanford_head(spec: EncoderSpec, folder: Path) -> Head:
    """The projection that Stanford's ColBERT keeps beside its encoder, and the norm after it."""
    size = read_json(folder / "artifact.metadata").get("dim", 128)
    return Head(((Dense(spec.hidden_size, size, False, "identity"), ("linear",)), (Normalize(), ())))


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors in the encoder's files. Where there is an index, each is the one in the shard that it names; a shard
    may hold more, which are not the model's."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return scan([folder / "model.safetensors"])
    places = {name: inside(folder, file, index.name) for name, file in read_json(index).get("weight_map", {}).items()}
    shards = {file: scan([file]) for file in sorted(set(places.values()))}
    return {name: shards[file][name] for name, file in places.items() if name in shards[file]}


def _renamed(stored: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Raises SetupError where two of them come to one name."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        first = found.setdefault(rename(name), tensor)
        if first is not tensor:
            raise SetupError(f"{tensor.file}: {first.name} and {name} are one tensor of the model; remove one of them")
    return found


def _modern(name: str) -> str:
    """BERT's first checkpoints, ported from TensorFlow, call a norm's weight gamma and its bias beta."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_shapes(parts: Mapping[str, tuple[Tensor, ...]], spec: EncoderSpec) -> None:
    for name, expected in tensor_shapes(spec).items():
        if name not in parts:
            raise SetupError(f"tensor {name} is missing from the checkpoint")
        tensors = parts[name]
        found = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        if found != expected:
            raise SetupError(f"{tensors[0].file}: {tensors[0].name} has shape {found}, config.json says {expected}")
        if tensors[0].dtype not in ("float32", "float16", "bfloat16") and tensors[0].scale is None:
            raise SetupError(
                f"{tensors[0].file}: {tensors[0].name} is {tensors[0].dtype}; use float32, float16, bfloat16 or fp8"
            )


def _tokenizer_file(folder: Path, modules: Modules) -> Path:
    for file in (modules.encoder / "tokenizer.json", folder / "tokenizer.json"):
        if file.exists():
            if file.stat().st_size > MAX_JSON:
                raise SetupError(f"{file} is larger than {MAX_JSON} bytes, and so no model's")
            return file
    raise SetupError(
        f"{folder / 'tokenizer.json'} is missing; write it with "
        "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _reads_types(folder: Path) -> bool:
    """Whether the tokenizer was used with types in training; its file alone has them whether or not."""
    names = read_json(folder / "tokenizer_config.json").get("model_input_names")
    return names is None or "token_type_ids" in names


def _max_tokens(folder: Path, limits: Mapping[str, Any], spec: EncoderSpec, max_num_tokens: int) -> int:
    """The smallest of: max_seq_length, else the tokenizer's model_max_length; the positions; max_num_tokens."""
    stated = limits.get("max_seq_length") or read_json(folder / "tokenizer_config.json").get("model_max_length")
    stated = int(stated) if stated and stated < _NO_LIMIT else spec.max_tokens
    return min(stated, spec.max_tokens, max_num_tokens)


def _added_specials(folder: Path) -> Specials:
    """Those that tokenizer_config.json asks for by its flags; transformers' Llama tokenizers obey them."""
    config = read_json(folder / "tokenizer_config.json")
    ends = (special_token(folder, f"{end}_token") if config.get(f"add_{end}_token") else None for end in ("bos", "eos"))
    return Specials(*ends)


def _activation(folder: Path) -> dict[str, Any]:
    """Where sentence-transformers 6 keeps a CrossEncoder's activation; older ones wrote it into config.json."""
    stated = read_json(folder / "config_sentence_transformers.json").get("activation_fn")
    return {"sentence_transformers": {"activation_fn": stated}} if stated else {}


def _prompts(folder: Path, late: LateInteraction | None) -> Prompts:
    config = read_json(folder / "config_sentence_transformers.json")
    texts = {name: text for name, text in (config.get("prompts") or {}).items() if text is not None}
    for role, marker in (late.markers if late else {}).items():
        texts[role] = marker + texts.get(role, "").removeprefix(marker)
    default = config.get("default_prompt_name")
    if default is not None and default not in texts:
        raise SetupError(f"config_sentence_transformers.json: default_prompt_name {default!r} is not among its prompts")
    return Prompts(texts, default)
