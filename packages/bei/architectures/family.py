"""A family: how to read the config.json of its models, the names of their tensors, and the heads that they may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bei.architectures.spec import (
    FIRST,
    LAST,
    LINEARS,
    MEAN,
    Activation,
    Dense,
    EncoderSpec,
    HeadLayer,
    LayerNorm,
    Pooling,
)
from bei.errors import SetupError, short


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

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


HeadKind = Literal["SequenceClassification", "TokenClassification", "MaskedLM", "RewardModel"]
"""The heads that are supported: the part after `For` in the name of a transformers class."""

Config = Mapping[str, Any]
NamedHeadLayer = tuple[HeadLayer, tuple[str, ...]]
"""A layer, and the modules of the checkpoint that may hold its tensors, in the order in which they are tried. A tied
matrix is found under the other module's name."""


@dataclass(frozen=True)
class ScoreTokens:
    """The token ids of a language model whose logits are its score: the logit of `yes`, minus that of `no` if there is
    one."""

    yes: int
    no: int | None = None


@dataclass(frozen=True)
class TaskHead:
    """`token_layers` run on every token's state, `layers` on the pooled row. With `score_tokens` the only layer has one
    output: its weights are rows of the matrix over the vocabulary. The output of the last of `layers` is divided by
    `temperature`."""

    token_layers: tuple[NamedHeadLayer, ...] = ()
    pooling: Pooling = FIRST
    layers: tuple[NamedHeadLayer, ...] = ()
    score_tokens: ScoreTokens | None = None
    temperature: float = 1.0


def no_layers(config: Config, spec: EncoderSpec) -> tuple[NamedHeadLayer, ...]:
    """An encoder whose states are its embeddings."""
    return ()


@dataclass(frozen=True)
class Family:
    """`prefixes` are tried in order before the names of the encoder's tensors. `ignored` are regular expressions for
    names, after the prefix, of tensors of heads that are not served. Any other tensor left over is an error.

    `heads` makes each kind of head from config.json, its spec and the number of outputs (labels, or the vocabulary).
    `pooling` is the default for an embedder; in a family without a default the checkpoint has to state its own.
    `token_layers` makes the layers that an embedder has on every token, with their tensors among those of the encoder.
    """

    spec: Callable[[Config], EncoderSpec]
    tensors: Callable[[Config, EncoderSpec], TensorNames]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    heads: Mapping[HeadKind, Callable[[Config, EncoderSpec, int], TaskHead]]
    pooling: Pooling | None = None
    token_layers: Callable[[Config, EncoderSpec], tuple[NamedHeadLayer, ...]] = no_layers


def read(config: Config, key: str) -> Any:
    """config[key]. Raises SetupError if config.json lacks it."""
    if config.get(key) is None:
        raise SetupError(f"config.json lacks `{key}`")
    return config[key]


def layer_kinds(config: Config, default: list[str]) -> list[str]:
    """`layer_types`, one per layer. Raises SetupError for a type other than full or sliding attention."""
    kinds, count = config.get("layer_types") or default, read(config, "num_hidden_layers")
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise SetupError(f"config.json: layer_types {short(kinds)} is not supported; supported: {', '.join(known)}")
    if len(kinds) != count:
        raise SetupError(f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers {count}")
    return kinds


def refuse_others(config: Config, supported: Mapping[str, Any]) -> None:
    """Raises SetupError if a key has a value other than the supported one, which is also the default."""
    for key, value in supported.items():
        if config.get(key) not in (None, value):
            raise SetupError(f"config.json: {key} {short(config[key])} is not supported; supported: {value}")


_POOLED: dict[str, Pooling] = {"avg": MEAN, "mean": MEAN, "cls": FIRST, "last": LAST}


def stated_pooling(config: Config) -> Pooling | None:
    """The pooling that config.json itself states: `pooling` of NVIDIA's bidirectional Llamas, `emb_pooler` of JinaBERT.
    Raises SetupError for one that is not supported."""
    key = next((key for key in ("pooling", "emb_pooler") if config.get(key) is not None), None)
    if key is None:
        return None
    if config[key] not in _POOLED:
        raise SetupError(f"config.json: {key} {short(config[key])} is not supported; supported: {', '.join(_POOLED)}")
    return _POOLED[config[key]]


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise SetupError(f"config.json: activation {short(name)} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def attention_sizes(hidden_size: int, heads: int, size: int | None = None) -> dict[str, Any]:
    """A spec's fields for multi-head attention. The default `size` of a head is hidden_size / heads."""
    size = size or hidden_size // heads
    return {"heads": heads, "kv_heads": heads, "head_size": size, "attention_scale": size**-0.5}


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


EMBEDDINGS = "embeddings.word_embeddings"
"""The place of the matrix of a masked language model's last layer, if it is tied."""


HeadMaker = Callable[[Config, EncoderSpec, int], TaskHead]


def two_dense(first: str, default: Activation, second: str, key: str = "") -> HeadMaker:
    """A classifier on the first token: a Dense with an activation, which config.json may name under `key`, then one
    output per label."""

    def head(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
        hidden, stated = spec.hidden_size, config.get(key) if key else None
        layers = (
            (Dense(hidden, hidden, True, activation(stated) if stated else default), (first,)),
            (Dense(hidden, outputs, True, "identity"), (second,)),
        )
        return TaskHead(layers=layers)

    return head


def one_dense(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """A tagger: one output per label, for every token."""
    return TaskHead(((Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",)),))


def masked_lm(dense: str, norm: str, *decoder: str, activation: Activation | None = None) -> HeadMaker:
    """A masked language model's head: Dense, norm, and one output per word of the vocabulary. The default activation is
    that of the encoder's layers."""

    def head(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
        width = spec.embedding_size
        layers = (
            (Dense(spec.hidden_size, width, True, activation or spec.activation), (dense,)),
            (LayerNorm(width, spec.norm.eps), (norm,)),
            (Dense(width, outputs, True, "identity"), (*decoder, EMBEDDINGS)),
        )
        return TaskHead(layers)

    return head
