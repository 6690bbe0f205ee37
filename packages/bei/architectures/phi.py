"""Phi-3 (arXiv:2404.14219): Llama with fused matrices, and LongRoPE's angles."""

from functools import partial
from typing import Any

from bei.architectures.config import Config, read
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, decoder_spec, decoder_tensors, farthest
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer


def _phi3(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    window = config.get("sliding_window")
    layer = Layer(PRE, farthest(config, window), rotary(_long(config), size, partial=1.0))
    layers = (layer,) * read(config, "num_hidden_layers")
    return decoder_spec({"rms_norm_eps": 1e-5, **config}, layers=layers)


def _long(config: Config) -> dict[str, Any]:
    """The first Phi-3 models call LongRoPE `su` or `yarn` (transformers, Phi3Config)."""
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    return {
        "original_max_position_embeddings": 4096,
        **config,
        "rope_scaling": {**stated, "rope_type": "longrope" if kind == "yarn" else kind},
    }


PHI3 = Family(
    _phi3,
    partial(decoder_tensors, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)),
    PREFIXES,
    IGNORED,
    HEADS,
    LAST,
)
