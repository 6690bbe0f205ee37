"""Gemma (arXiv:2403.08295), Gemma 2 (arXiv:2408.00118), the encoder of T5Gemma (arXiv:2504.06225), and the text model
of Gemma 3 (arXiv:2503.19786), which includes EmbeddingGemma: scaled embeddings, and norms whose stored weight is the
real one minus 1."""

from dataclasses import replace
from functools import partial

from bei.architectures.config import Config, activation, layer_kinds, read, refuse_others
from bei.architectures.decoder import (
    HEADS,
    IGNORED,
    PREFIXES,
    attention_biases,
    decoder_spec,
    decoder_tensors,
    farthest,
    windows,
)
from bei.architectures.family import Family
from bei.architectures.limits import check_counts
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, MEAN, SANDWICH, EncoderSpec, Layer, Norm

SANDWICH_NAMES = {
    "attention_in": "input_layernorm",
    "attention_out": "post_attention_layernorm",
    "ffn_in": "pre_feedforward_layernorm",
    "ffn_out": "post_feedforward_layernorm",
}


def _spec(config: Config, **changes: object) -> EncoderSpec:
    common = {
        "norm": Norm("rms", config.get("rms_norm_eps", 1e-6), offset=1.0),
        "activation": activation(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        "embedding_scale": read(config, "hidden_size") ** 0.5,
        "head_size": config.get("head_dim") or 256,
        "biases": attention_biases(config),
    }
    return decoder_spec({"head_dim": 256, **config}, **{**common, **changes})


def _gemma2(config: Config) -> EncoderSpec:
    if not config.get("layer_types"):
        kinds = ("sliding_attention", "full_attention")
        config = {**config, "layer_types": [kinds[i % 2] for i in range(read(config, "num_hidden_layers"))]}
    rotated = rotary(config, config.get("head_dim") or 256)
    return _spec(
        config,
        layers=tuple(Layer(SANDWICH, window, rotated) for window in windows({"sliding_window": 4096, **config})),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=config.get("attn_logit_softcapping", 50.0),
    )


def _gemma3(config: Config) -> EncoderSpec:
    refuse_others(config, {"attn_logit_softcapping": None})
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    last = ["sliding_attention"] * (pattern - 1) + ["full_attention"]
    kinds = layer_kinds(config, [last[i % pattern] for i in range(read(config, "num_hidden_layers"))])
    return _spec(
        config,
        layers=tuple(_gemma3_layer(config, kind) for kind in kinds),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        qk_norm=True,
    )


def _gemma3_layer(config: Config, kind: str) -> Layer:
    """Local layers have their own rotary embedding, without scaling. A bidirectional window is half on each side."""
    size = config.get("head_dim") or 256
    if kind == "full_attention":
        return Layer(SANDWICH, None, rotary({"rope_theta": 1e6, **config}, size, kind))
    window = config.get("sliding_window", 4096)
    seen = window // 2 if config.get("use_bidirectional_attention") else farthest(config, window)
    local = {
        "rope_theta": config.get("rope_local_base_freq", 10_000.0),
        "rope_parameters": config.get("rope_parameters"),
    }
    return Layer(SANDWICH, seen, rotary(local, size, kind))


def _t5gemma(config: Config) -> EncoderSpec:
    """The encoder of T5Gemma: Gemma 2 that sees both ways."""
    encoder = {"sliding_window": 4096, **read(config, "encoder"), "is_causal": False}
    check_counts(encoder)
    return replace(_gemma2(encoder), pooling=MEAN)


_T5GEMMA_NAMES = {
    "attention_in": "pre_self_attn_layernorm",
    "attention_out": "post_self_attn_layernorm",
    "ffn_in": "pre_feedforward_layernorm",
    "ffn_out": "post_feedforward_layernorm",
}
_sandwich_tensors = partial(decoder_tensors, norms=SANDWICH_NAMES)

GEMMA = Family(_spec, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
GEMMA2 = Family(_gemma2, _sandwich_tensors, PREFIXES, IGNORED, HEADS, LAST)
GEMMA3 = Family(_gemma3, _sandwich_tensors, PREFIXES, IGNORED, HEADS, LAST)
T5GEMMA = Family(
    _t5gemma,
    partial(decoder_tensors, norms=_T5GEMMA_NAMES),
    ("encoder.", "model.encoder."),
    (*IGNORED, r"(model\.)?decoder\."),
    {},
    MEAN,
)
