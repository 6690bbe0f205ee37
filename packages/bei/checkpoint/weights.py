"""Maps the names of a checkpoint's tensors to ours, and checks that each tensor is there."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bei.architectures.family import Family, NamedHeadLayer, ScoreTokens, TaskHead
from bei.architectures.shapes import tensor_shapes
from bei.architectures.spec import Dense, EncoderSpec, LayerNorm
from bei.architectures.tensor_names import Flat, Part, Regrouped, StackEntry, TensorSlice, Zeros
from bei.checkpoint.adapters import Adapter
from bei.checkpoint.leftovers import LEFTOVER, bare_names
from bei.checkpoint.modules import inside, read_json
from bei.checkpoint.tensors import Tensor, scan, with_scales
from bei.errors import SetupError

log = logging.getLogger("bei")

Parts = dict[str, tuple[Tensor, ...]]
"""Our name → the stored tensors that make it, concatenated along the first axis."""

_SCORES = re.compile(r"(classifier|score|qa_outputs)\b")
"""The last part of a head that scores, in the names of every family."""


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files of a model's weights, and with `.index.json` the indices of their shards, in the order of transformers."""


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights, with the scales of float8 ones in them, and under names of today. Raises
    SetupError for a file that is missing, truncated or of another format."""
    return _renamed(with_scales(tensors_of(folder)), _modern)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights as it is stored. As in transformers, safetensors take precedence over pickles,
    and one file over shards. With an index, each tensor comes from the shard that the index names; other tensors of a
    shard are ignored. Raises SetupError for a file that is missing, truncated or of another format."""
    for name in WEIGHTS:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.exists():
            return scan(file)
        if index.exists():
            return _sharded(folder, index)
    raise SetupError(f"{folder / WEIGHTS[0]} is missing; download the checkpoint again")


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    places = {name: inside(folder, file, index.name) for name, file in read_json(index).get("weight_map", {}).items()}
    shards = {file: scan(file) for file in sorted(set(places.values()))}
    return {name: shards[file][name] for name, file in places.items() if name in shards[file]}


def find(
    folder: Path,
    stored: Mapping[str, Tensor],
    family: Family,
    config: Mapping[str, Any],
    spec: EncoderSpec,
    head: TaskHead,
    adapter: Adapter | None = None,
) -> Parts:
    """Find each of our tensors among those `stored`, to which an adapter may add. Raises SetupError that lists tensors
    missing or left over."""
    names = dict(family.tensors(config, spec))
    (first,) = names["embeddings.token"]
    stored = _renamed(stored, bare_names(stored, str(first), family.prefixes, folder).__getitem__)
    if adapter is not None:
        stored = adapter.merged(stored, family.prefixes)
    for part, layers in (("token_head", head.token_layers), ("head", head.layers)):
        names |= _head_names(part, layers, stored)
    if head.score_tokens is not None:
        (matrix,) = names["head.0.weight"]
        names["head.0.weight"] = (_score_slice(_name(matrix), head.score_tokens),)
    wanted = [name for parts in names.values() for theirs in parts for name in _names(theirs)]
    missing = [theirs for theirs in wanted if theirs not in stored]
    if missing:
        raise SetupError(f"{folder}: tensors missing: {_some(missing)}")
    ignored = re.compile("|".join(family.ignored))
    left = [n for n in stored.keys() - set(wanted) if not ignored.match(n) and not LEFTOVER.match(n)]
    if left:
        raise SetupError(f"{folder}: tensors that config.json does not account for: {_some(sorted(left))}")
    return _tempered({ours: tuple(_part(stored, of) for of in parts) for ours, parts in names.items()}, head)


def tell_of_scores(stored: Mapping[str, Tensor], architecture: str) -> None:
    """Warn if a model that is served without a head has one that scores: its config.json may name the wrong class."""
    found = sorted(name for name in stored if _SCORES.match(name))
    if found:
        log.warning(
            "the weights hold a head that config.json's %s does not have, and that is not used: %s; if this is a "
            "reranker or a classifier, `architectures` must name its class (*ForSequenceClassification)",
            architecture or "missing `architectures`",
            _some(found),
        )


def check_shapes(parts: Mapping[str, tuple[Tensor, ...]], spec: EncoderSpec) -> None:
    """Raises SetupError for a tensor whose shape is not the spec's, or whose type is not read."""
    for name, expected in tensor_shapes(spec).items():
        if name not in parts:
            raise SetupError(f"tensor {name} is missing from the checkpoint")
        tensors = parts[name]
        rows = sum(tensor.shape[0] for tensor in tensors if tensor.shape)
        for tensor in sorted(tensors, key=lambda tensor: tensor.shape[1:] == expected[1:]):
            found = (rows, *tensor.shape[1:])
            if found != expected:
                raise SetupError(f"{tensor.file}: {tensor.name} has shape {found}, config.json says {expected}")
            if tensor.scale and tensor.is_rearranged:
                raise SetupError(f"{tensor.file}: {tensor.name} is fp8 in a layout that is not read; use bfloat16")
            if tensor.dtype not in ("float32", "float16", "bfloat16") and tensor.scale is None:
                raise SetupError(
                    f"{tensor.file}: {tensor.name} is {tensor.dtype}; use float32, float16, bfloat16 or fp8"
                )


def _tempered(parts: Parts, head: TaskHead) -> Parts:
    if head.temperature == 1:
        return parts
    last = f"head.{len(head.layers) - 1}."
    cooled = {
        ours: tuple(replace(tensor, divisor=head.temperature) for tensor in tensors)
        for ours, tensors in parts.items()
        if ours.startswith(last)
    }
    return parts | cooled


def _score_slice(matrix: str, score_tokens: ScoreTokens) -> TensorSlice:
    return TensorSlice(matrix, score_tokens.yes, score_tokens.yes + 1, score_tokens.no)


def _name(theirs: Part) -> str:
    return theirs if isinstance(theirs, str) else theirs.name


def _names(theirs: Part) -> tuple[str, ...]:
    """Every stored tensor that it is made of."""
    plus = theirs.plus if isinstance(theirs, TensorSlice) else None
    return (_name(theirs), plus) if plus else (_name(theirs),)


def _part(stored: Mapping[str, Tensor], theirs: Part) -> Tensor:
    match theirs:
        case TensorSlice(name, start, stop, less, step, transposed, plus):
            part = stored[name].rows(start, stop, less, step)
            part = replace(part, plus=stored[plus].rows(0, 1)) if plus else part
        case Zeros(name, flat):
            return replace(stored[name].flat() if flat else stored[name], is_zero=True)
        case Flat(name, transposed):
            part = stored[name].flat()
        case StackEntry(name, index, transposed):
            part = stored[name].entry(index)
        case Regrouped(name, groups, axes):
            return replace(stored[name], groups=groups, axes=axes)
        case _:
            return stored[theirs]
    return part.transposed() if transposed else part


def _head_names(
    part: str, layers: tuple[NamedHeadLayer, ...], stored: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Our name of each tensor → the first of its names that is stored; else its first name, which is then missing."""
    names: dict[str, tuple[str, ...]] = {}
    for i, (layer, modules) in enumerate(layers):
        if not modules:
            continue
        has_bias = isinstance(layer, (Dense, LayerNorm)) and layer.bias
        for tensor in ("weight", "bias") if has_bias else ("weight",):
            places = [f"{module}.{tensor}" for module in modules]
            names[f"{part}.{i}.{tensor}"] = (next((place for place in places if place in stored), places[0]),)
    return names


def _renamed(stored: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Raises SetupError if two tensors get the same name."""
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
