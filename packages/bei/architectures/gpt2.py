"""GPT-2 (Radford et al., 2019), whose matrices are stored transposed, and GPT-BigCode (arXiv:2301.03988), all of whose
heads may share one key and one value."""

from functools import partial
from typing import Any

from bei.architectures.config import Config, activation, read, refuse_others
from bei.architectures.decoder import GPT_HEADS, gpt_spec, gpt_tensors
from bei.architectures.family import Family
from bei.architectures.spec import LAST, LINEARS, PRE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, per_head, turned

_IGNORED = (r"lm_head\.", r"score\.", r"classifier\.", r"multiple_choice_head\.", r"h\.\d+\.attn\.(bias|masked_bias)$")
"""The last one is a mask, not learned."""


def _spec(config: Config, default_activation: str, **words: Any) -> EncoderSpec:
    hidden = read(config, "n_embd")
    if config.get("scale_attn_weights") is False:
        words["attention_scale"] = 1.0
    return gpt_spec(
        config,
        hidden,
        read(config, "n_head"),
        intermediate_size=config.get("n_inner") or 4 * hidden,
        activation=activation(config.get("activation_function", default_activation)),
        layers=(Layer(PRE),) * read(config, "n_layer"),
        max_tokens=read(config, "n_positions"),
        position_offset=0,
        **words,
    )


def _gpt2(config: Config) -> EncoderSpec:
    refuse_others(config, {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})
    return _spec(config, "gelu_new")


def _bigcode(config: Config) -> EncoderSpec:
    refuse_others(config, {"add_cross_attention": False})
    shared = {"kv_heads": 1} if config.get("multi_query", True) else {}
    return _spec(config, "gelu_pytorch_tanh", **shared)


def gpt2_tensors(spec: EncoderSpec, qkv: tuple[str, ...] = ("attn.c_attn",), out: str = "attn.c_proj") -> TensorNames:
    """The names of GPT-2, or of a model whose attention has other names."""
    return gpt_tensors(
        spec,
        "h",
        tokens="wte",
        positions="wpe",
        final_norm="ln_f",
        attention_in=("ln_1",),
        qkv=qkv,
        out=(out,),
        ffn_in=("ln_2",),
        up=("mlp.c_fc",),
        down=("mlp.c_proj",),
    )


def _gpt2_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(gpt2_tensors(spec))
    for i in range(len(spec.layers)):
        for part in LINEARS:
            (name,) = names[f"layers.{i}.{part}.weight"]
            names[f"layers.{i}.{part}.weight"] = (turned(str(name)),)
    return names


def _bigcode_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = gpt2_tensors(spec)
    return names if spec.kv_heads < spec.heads else {**names, **per_head(spec, "h.{}.attn.c_attn")}


_family = partial(
    Family,
    prefixes=("transformer.", ""),
    ignored=_IGNORED,
    heads=GPT_HEADS,
    pooling=LAST,
)
GPT2 = _family(_gpt2, _gpt2_tensors)
GPT_BIGCODE = _family(_bigcode, _bigcode_tensors)
