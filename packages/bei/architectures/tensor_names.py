"""The names of a checkpoint's tensors: ours, and the places where a family's checkpoints have their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from bei.architectures.config import Config
from bei.architectures.spec import LINEARS, EncoderSpec


@dataclass(frozen=True)
class TensorSlice:
    """Every `step`-th of the rows from `start` to `stop` of one of the checkpoint's tensors. Row `less` is subtracted
    from each, and the first row of the tensor `plus` is added. `transposed`: the rows are of a matrix
    [inputs, outputs], which is turned."""

    name: str
    start: int
    stop: int
    less: int | None = None
    step: int = 1
    transposed: bool = False
    plus: str | None = None


@dataclass(frozen=True)
class StackEntry:
    """The entry `index` of one of the checkpoint's tensors along its first axis, without that axis: the matrix or bias
    of one expert. `transposed` as above."""

    name: str
    index: int
    transposed: bool = False


@dataclass(frozen=True)
class Zeros:
    """Zeros in the shape of one of the checkpoint's tensors; with `flat` in that of a Flat."""

    name: str
    flat: bool = False


@dataclass(frozen=True)
class Flat:
    """One of the checkpoint's tensors, its last two axes as one. `transposed`: and then turned."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Regrouped:
    """One of the checkpoint's tensors, its rows in another order: seen as `groups`, they are transposed to the order
    `axes` of these."""

    name: str
    groups: tuple[int, ...]
    axes: tuple[int, ...]


Part = str | TensorSlice | StackEntry | Regrouped | Flat | Zeros
TensorNames = Mapping[str, tuple[Part, ...]]
"""Our name → the checkpoint's names; several tensors are concatenated along the first axis."""

_ALL = 1 << 31

_BERT_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "attention_end": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "ffn_end": ("output.LayerNorm",),
}


def bert_tensors(
    config: Config, spec: EncoderSpec, *, layer: str = "encoder.layer", **parts: tuple[str, ...]
) -> TensorNames:
    """Names of an encoder with BERT's embeddings, whose layers have the prefix `layer`. `parts` maps our part of a
    layer to theirs, where that has another name than BERT's."""
    names: dict[str, tuple[Part, ...]] = {
        "embeddings.token": ("embeddings.word_embeddings.weight",),
    }
    if spec.embedding_norm:
        names |= affine("embeddings.norm", "embeddings.LayerNorm")
    if spec.position_offset is not None:
        names["embeddings.position"] = ("embeddings.position_embeddings.weight",)
    if spec.embedding_size != spec.hidden_size:
        names |= affine("embeddings.project", "embeddings_project")
    if spec.token_types:
        names["embeddings.token_type"] = ("embeddings.token_type_embeddings.weight",)
    return {**names, **layer_tensors(spec, layer, **{**_BERT_PARTS, **parts})}


def layer_tensors(spec: EncoderSpec, layer: str, **parts: tuple[str, ...]) -> TensorNames:
    """The names of the parts of every layer, with a bias if the spec has one. An MLP's are left out of a layer that has
    experts."""
    names: dict[str, tuple[Part, ...]] = {}
    for i, of in enumerate(spec.layers):
        for ours, theirs in parts.items():
            if of.experts and ours in ("up", "down"):
                continue
            if ours in LINEARS or ours in of.norms or ours in spec.qk_norm_sizes:
                has_bias = spec.norm_of_heads if ours in spec.qk_norm_sizes else spec.norm
                bias = ours in spec.biases or (ours not in LINEARS and has_bias.bias)
                names |= affine(f"layers.{i}.{ours}", *(f"{layer}.{i}.{name}" for name in theirs), bias=bias)
    return names


def pairs(name: str, start: int, size: int) -> tuple[TensorSlice, TensorSlice]:
    """The rows of a head whose rotation takes neighboring numbers for a pair, in our order: the first numbers of all
    pairs, then the second ones. Scores are the same, because queries and keys are ordered alike."""
    return TensorSlice(name, start, start + size, step=2), TensorSlice(name, start + 1, start + size, step=2)


def gate_last(spec: EncoderSpec, name: str) -> TensorNames:
    """Names of the gated matrices whose gate is the second half. `name` has a place for the number of the layer."""
    inner = spec.intermediate_size
    matrices = (f"{name.format(i)}.weight" for i in range(len(spec.layers)))
    return {
        f"layers.{i}.up.weight": (TensorSlice(matrix, inner, 2 * inner), TensorSlice(matrix, 0, inner))
        for i, matrix in enumerate(matrices)
    }


def affine(ours: str, *theirs: str, bias: bool = True) -> dict[str, tuple[Part, ...]]:
    """The weight and bias of one linear layer or norm."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in parts}


def turned(name: str) -> TensorSlice:
    """A matrix that is stored as [inputs, outputs] (transformers, Conv1D)."""
    return TensorSlice(name, 0, _ALL, transposed=True)


def per_head(spec: EncoderSpec, name: str) -> TensorNames:
    """Names of matrices in which the query, the key and the value of each head are adjacent. `name` has a place for the
    number of the layer."""
    groups, parts = (spec.heads, 3, spec.head_size), ("weight", "bias") if "qkv" in spec.biases else ("weight",)
    return {
        f"layers.{i}.qkv.{part}": (Regrouped(f"{name.format(i)}.{part}", groups, (1, 0, 2)),)
        for i in range(len(spec.layers))
        for part in parts
    }


def adjacent_pairs(names: TensorNames, spec: EncoderSpec) -> TensorNames:
    """The names of a model that rotates the numbers (0, 1), (2, 3), ... of a head: the first numbers of all pairs come
    first here. Scores do not depend on the order of a head's numbers, if queries and keys have the same."""
    changed = dict(names)
    for i in range(len(spec.layers)):
        for part in ("weight", "bias") if "qkv" in spec.biases else ("weight",):
            query, key, value = names[f"layers.{i}.qkv.{part}"]
            halves = (Regrouped(str(of), (-1, spec.head_size // 2, 2), (0, 2, 1)) for of in (query, key))
            changed[f"layers.{i}.qkv.{part}"] = (*halves, value)
    return changed
