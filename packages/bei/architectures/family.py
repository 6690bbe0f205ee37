"""A family: how to read the config.json of its models, and where their tensors stand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bei.architectures.spec import Activation, EncoderSpec
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


@dataclass(frozen=True)
class Family:
    """`prefixes` are tried in order for the encoder's tensors; those that match `ignored` (regular expressions,
    after the prefix) belong to heads an encoder does not have, and any other left over is an error."""

    spec: Callable[[Mapping[str, Any]], EncoderSpec]
    tensors: Callable[[EncoderSpec], TensorNames]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]


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
    if spec.token_types:
        names["embeddings.token_type"] = ("embeddings.token_type_embeddings.weight",)
    for i in range(spec.layers):
        for ours, theirs in parts.items():
            names |= _affine(f"layers.{i}.{ours}", *(f"{layer}.{i}.{name}" for name in theirs))
    return names


def _affine(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """The weight and bias of one linear layer or norm."""
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}
