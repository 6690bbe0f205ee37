"""How a config.json is read: its keys, and refusals of the values that are not supported."""

from collections.abc import Mapping
from typing import Any

from bei.architectures.spec import FIRST, LAST, MEAN, Activation, Pooling
from bei.errors import SetupError, short

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

Config = Mapping[str, Any]


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


def bert_sizes(config: Config) -> dict[str, Any]:
    """A spec's fields whose keys are BERT's in the config.json of other families, too."""
    hidden = read(config, "hidden_size")
    return {
        "vocab_size": read(config, "vocab_size"),
        "hidden_size": hidden,
        "embedding_size": hidden,
        "intermediate_size": read(config, "intermediate_size"),
        "activation": activation(config.get("hidden_act", "gelu")),
    }
