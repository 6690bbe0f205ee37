"""A family: how to read the config.json of its models, where their tensors stand, and the heads they may carry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bei.architectures.spec import Activation, Dense, EncoderSpec, LayerNorm, Stage
from bei.errors import SetupError

TensorNames = Mapping[str, tuple[str, ...]]
"""Our name → the checkpoint's; several are concatenated along the first axis."""

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


HeadKind = Literal["SequenceClassification", "TokenClassification", "MaskedLM"]
"""What follows `For` in the name of a transformers class, where it is a head that we have."""

Head = tuple[tuple[Stage, tuple[str, ...]], ...]
"""Each stage, and the checkpoint's modules that may hold its tensors: the first that has one gives it. A tied matrix is
found under the other module's name."""


@dataclass(frozen=True)
class Family:
    """`prefixes` are tried in order for the encoder's tensors; those that match `ignored` (regular expressions,
    after the prefix) belong to heads that are not served, and any other left over is an error.

    `heads` makes each kind of head for a spec and its number of outputs (labels, or the vocabulary).
    """

    spec: Callable[[Mapping[str, Any]], EncoderSpec]
    tensors: Callable[[EncoderSpec], TensorNames]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    heads: Mapping[HeadKind, Callable[[EncoderSpec, int], Head]]


def read(config: Mapping[str, Any], key: str) -> Any:
    """config[key]. Raises SetupError where config.json lacks it."""
    if config.get(key) is None:
        raise SetupError(f"config.json lacks `{key}`")
    return config[key]


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise SetupError(f"config.json: activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def bert_tensors(spec: EncoderSpec, *, layer: str, **parts: tuple[str, ...]) -> TensorNames:
    """Names of an encoder with BERT's embeddings, whose layers stand under `layer`.

    `parts` maps our part of a layer (qkv, out, attention_norm, up, down, ffn_norm) to theirs.
    """
    names = {
        "embeddings.token": ("embeddings.word_embeddings.weight",),
        "embeddings.position": ("embeddings.position_embeddings.weight",),
        **_affine("embeddings.norm", "embeddings.LayerNorm"),
    }
    if spec.embedding_size != spec.hidden_size:
        names |= _affine("embeddings.project", "embeddings_project")
    if spec.token_types:
        names["embeddings.token_type"] = ("embeddings.token_type_embeddings.weight",)
    for i in range(spec.layers):
        for ours, theirs in parts.items():
            names |= _affine(f"layers.{i}.{ours}", *(f"{layer}.{i}.{name}" for name in theirs))
    return names


EMBEDDINGS = "embeddings.word_embeddings"
"""Where the matrix of a masked language model's last stage is, when it is tied."""


def two_dense(first: str, activation: Activation, second: str) -> Callable[[EncoderSpec, int], Head]:
    """A classifier on the first token: a Dense with an activation, then one row a label."""

    def head(spec: EncoderSpec, outputs: int) -> Head:
        hidden = spec.hidden_size
        return (
            (Dense(hidden, hidden, True, activation), (first,)),
            (Dense(hidden, outputs, True, "identity"), (second,)),
        )

    return head


def one_dense(spec: EncoderSpec, outputs: int) -> Head:
    """A tagger: one row a label, on every token."""
    return ((Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",)),)


def masked_lm(
    dense: str, norm: str, *decoder: str, activation: Activation | None = None
) -> Callable[[EncoderSpec, int], Head]:
    """A masked language model's head: Dense, norm, and one row a word of the vocabulary; without an activation of its
    own it has the layers'."""

    def head(spec: EncoderSpec, outputs: int) -> Head:
        width = spec.embedding_size
        return (
            (Dense(spec.hidden_size, width, True, activation or spec.activation), (dense,)),
            (LayerNorm(width, spec.norm_eps), (norm,)),
            (Dense(width, outputs, True, "identity"), (*decoder, EMBEDDINGS)),
        )

    return head


def _affine(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """The weight and bias of one linear layer or norm."""
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}
