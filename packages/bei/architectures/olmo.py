"""OLMo 2 (arXiv:2501.00656): Llama with norms on the outputs of attention and MLP, and on all queries and all keys.
OLMo 3: the same, with windows."""

from functools import partial
from typing import Any

from bei.architectures.config import Config, layer_kinds, read
from bei.architectures.decoder import (
    HEADS,
    IGNORED,
    PREFIXES,
    attention_biases,
    decoder_spec,
    decoder_tensors,
    farthest,
)
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, EncoderSpec, Layer, NormPlace

_OUTPUTS: tuple[NormPlace, ...] = ("attention_out", "ffn_out")


def _size(config: Config) -> int:
    size: int = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    return size


def _spec(config: Config, layers: tuple[Layer, ...]) -> EncoderSpec:
    return decoder_spec(
        {"rms_norm_eps": 1e-5, **config},
        layers=layers,
        qk_norm=True,
        whole_qk_norm=True,
        biases=attention_biases(config),
    )


def _olmo2(config: Config) -> EncoderSpec:
    layer = Layer(_OUTPUTS, rotary=rotary(config, _size(config)))
    return _spec(config, (layer,) * read(config, "num_hidden_layers"))


def _olmo3(config: Config) -> EncoderSpec:
    kinds = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(read(config, "num_hidden_layers"))]
    return _spec(config, tuple(_olmo3_layer(config, kind) for kind in layer_kinds(config, kinds)))


def _olmo3_layer(config: Config, kind: str) -> Layer:
    """`rope_scaling`, of older files, is of the layers without a window."""
    config = {"rope_theta": 5e5, "sliding_window": 4096, **config}
    if kind == "full_attention":
        return Layer(_OUTPUTS, None, rotary(config, _size(config), kind))
    local: dict[str, Any] = {key: config.get(key) for key in ("rope_theta", "rope_parameters")}
    return Layer(_OUTPUTS, farthest(config, read(config, "sliding_window")), rotary(local, _size(config), kind))


_tensors = partial(
    decoder_tensors, norms={"attention_out": "post_attention_layernorm", "ffn_out": "post_feedforward_layernorm"}
)

OLMO2 = Family(_olmo2, _tensors, PREFIXES, IGNORED, HEADS, LAST)
OLMO3 = Family(_olmo3, _tensors, PREFIXES, IGNORED, HEADS, LAST)
