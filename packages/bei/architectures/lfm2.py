"""LFM2 (arXiv:2511.23404): a decoder most of whose layers have a short convolution in place of attention; and LFM2.5's
encoders, whose convolutions and attention see both ways."""

from typing import Any

from bei.architectures.config import Config, read, refuse_others
from bei.architectures.decoder import decoder_spec, decoder_tensors, is_causal, refuse_both_ways, score_head, tagger
from bei.architectures.family import Family, TaskHead
from bei.architectures.layer_parts import ShortConvolution
from bei.architectures.rope import rotary
from bei.architectures.spec import PRE, Dense, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames, affine
from bei.errors import SetupError

_KINDS = ("full_attention", "conv")
_NORMS = {"attention_in": "operator_norm", "ffn_in": "ffn_norm"}
_MLP = {"up": ("feed_forward.w1", "feed_forward.w3"), "down": ("feed_forward.w2",)}


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, {"conv_bias": False})
    if not any("Bidirectional" in name for name in config.get("architectures") or ()):
        refuse_both_ways(config, "only the convolutions of Lfm2BidirectionalModel see both ways")
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    attention = Layer(PRE, rotary=rotary({"rope_theta": 1e6, **config}, size))
    convolution = Layer(PRE, convolution=ShortConvolution(config.get("conv_L_cache", 3), not is_causal(config)))
    kinds = _kinds(config)
    return decoder_spec(
        {**config, "hidden_act": "silu", "intermediate_size": _intermediate_size(config)},
        layers=tuple(attention if kind == "full_attention" else convolution for kind in kinds),
        kv_heads=config.get("num_key_value_heads", 8),
        norm=Norm("rms", config.get("norm_eps", 1e-5)),
        qk_norm=True,
    )


def _kinds(config: Config) -> list[str]:
    """By `layer_types`, else by `full_attn_idxs`."""
    count, attend = read(config, "num_hidden_layers"), config.get("full_attn_idxs")
    attend = range(count) if attend is None else attend
    kinds = config.get("layer_types") or ["full_attention" if i in attend else "conv" for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in _KINDS for kind in kinds):
        raise SetupError(f"config.json: layer_types must name {count} layers, each {' or '.join(_KINDS)}")
    return kinds


def _intermediate_size(config: Config) -> int:
    """Two thirds of the stated size, rounded up to a multiple, unless that is switched off (transformers, Lfm2MLP)."""
    stated: int = config.get("block_ff_dim") or read(config, "intermediate_size")
    if not config.get("block_auto_adjust_ff_dim", True):
        return stated
    multiple, times = config.get("block_multiple_of", 256), config.get("block_ffn_dim_multiplier", 1.0)
    scaled = int(2 * stated / 3) if times is None else int(times * int(2 * stated / 3))
    return scaled if times is None else multiple * -(-scaled // multiple)


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names: dict[str, Any] = dict(decoder_tensors(config, spec, _NORMS, out=("self_attn.out_proj",), **_MLP))
    names |= affine("final_norm", "embedding_norm", bias=False)
    for i, layer in enumerate(spec.layers):
        for ours, theirs in (("query_norm", "q_layernorm"), ("key_norm", "k_layernorm")):
            names[f"layers.{i}.{ours}.weight"] = (f"layers.{i}.self_attn.{theirs}.weight",)
            if layer.convolution:
                del names[f"layers.{i}.{ours}.weight"]
        if layer.convolution:
            parts = {"qkv": "in_proj", "out": "out_proj", "taps": "conv"}
            names |= {f"layers.{i}.{ours}.weight": (f"layers.{i}.conv.{of}.weight",) for ours, of in parts.items()}
    return names


def _masked_lm(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    words = Dense(spec.hidden_size, outputs, False, "identity")
    return TaskHead(((words, ("lm_head", "embed_tokens")),))


LFM2 = Family(
    _spec,
    _tensors,
    ("model.", "lfm2.", ""),
    (r"lm_head\.", r"score\."),
    {"SequenceClassification": score_head, "TokenClassification": tagger, "MaskedLM": _masked_lm},
)
