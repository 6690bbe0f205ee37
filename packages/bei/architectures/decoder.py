"""The common part of the causal families: pre-norm layers with RMS norm, rotary embeddings, grouped keys and a gated
MLP; the names of their tensors; and their heads. The config.json of a bidirectional decoder says that it is one."""

from collections.abc import Mapping
from typing import Any

from bei.architectures.config import Config, activation, attention_sizes, layer_kinds, read
from bei.architectures.family import HeadKind, TaskHead
from bei.architectures.rope import longest, rotary
from bei.architectures.spec import LAST, PRE, Dense, EncoderSpec, Layer, LinearName, Norm
from bei.architectures.tensor_names import Part, TensorNames, affine, layer_tensors
from bei.architectures.usual_heads import HeadMaker, one_dense
from bei.errors import SetupError

PREFIXES = ("model.", "")
IGNORED = (r"lm_head\.", r"score\.")
_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_BIDIRECTIONAL = ("llama_bidirec", "ministral3_bidirec", "bidirectional_pplx_qwen3")


def decoder_spec(config: Config, **changes: Any) -> EncoderSpec:
    """The spec of Llama, with `changes`."""
    heads, hidden = read(config, "num_attention_heads"), read(config, "hidden_size")
    size = config.get("head_dim") or hidden // heads
    common = {
        "vocab_size": read(config, "vocab_size"),
        "hidden_size": hidden,
        "embedding_size": hidden,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": size,
        "attention_scale": size**-0.5,
        "intermediate_size": read(config, "intermediate_size"),
        "activation": activation(config.get("hidden_act", "silu")),
        "gated": True,
        "norm": Norm("rms", config.get("rms_norm_eps", 1e-6)),
        "max_tokens": longest(config),
        "causal": is_causal(config),
        "biases": (),
        "embedding_norm": False,
        "final_norm": True,
        "pooling": LAST,
    }
    if "layers" not in changes:
        common["layers"] = (Layer(PRE, rotary=rotary(config, size)),) * read(config, "num_hidden_layers")
    return EncoderSpec(**{**common, **changes})


def gpt_spec(config: Config, hidden: int, heads: int, **words: Any) -> EncoderSpec:
    """The spec of GPT-2 and its kin, whose products and norms have biases, with `words` in addition or instead."""
    common = {
        "vocab_size": read(config, "vocab_size"),
        "hidden_size": hidden,
        "embedding_size": hidden,
        **attention_sizes(hidden, heads),
        "norm": Norm("layer", config.get("layer_norm_epsilon", 1e-5), bias=True),
        "causal": is_causal(config),
        "embedding_norm": False,
        "final_norm": True,
        "pooling": LAST,
    }
    return EncoderSpec(**{**common, **words})


def gpt_tensors(
    spec: EncoderSpec, layer: str, *, tokens: str, positions: str = "", final_norm: str, **parts: tuple[str, ...]
) -> dict[str, tuple[Part, ...]]:
    """Names of GPT-2 and its kin: the tables of `tokens` and of `positions`, if it has one; `parts` of the layers, with
    the prefix `layer`; and the last norm."""
    tables = {"embeddings.token": tokens} | ({"embeddings.position": positions} if positions else {})
    names = {ours: (f"{theirs}.weight",) for ours, theirs in tables.items()}
    return {**names, **layer_tensors(spec, layer, **parts), **affine("final_norm", final_norm)}


def is_causal(config: Config) -> bool:
    """False for a bidirectional variant, which is known by its flags, by its model_type, or by the name of its class
    (LlamaBidirectionalModel)."""
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        return False
    if config.get("model_type") in _BIDIRECTIONAL:
        return False
    return not any("Bidirectional" in name for name in config.get("architectures") or ())


def attention_biases(config: Config, *, qkv: bool = False, out: bool = False) -> tuple[LinearName, ...]:
    """The linear parts that have a bias: attention's by `attention_bias`, or else by the arguments."""
    stated = config.get("attention_bias")
    found: dict[LinearName, bool] = {
        "qkv": qkv if stated is None else stated,
        "out": out if stated is None else stated,
        "up": config.get("mlp_bias", False),
        "down": config.get("mlp_bias", False),
    }
    return tuple(name for name, has in found.items() if has)


def farthest(config: Config, window: int | None) -> int | None:
    """The largest distance in a window: of a causal model it counts the token itself, and of a bidirectional one it is
    the distance on each side (transformers, masking_utils). None for no window."""
    return window - is_causal(config) if window else None


def windows(config: Config, default: str = "full_attention") -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types`."""
    kinds = layer_kinds(config, [default] * read(config, "num_hidden_layers"))
    seen = (farthest(config, read(config, "sliding_window")) if kind == "sliding_attention" else None for kind in kinds)
    return tuple(seen)


def refuse_both_ways(config: Config, why: str) -> None:
    """Raises SetupError for a bidirectional variant of an architecture that has none."""
    if not is_causal(config):
        raise SetupError(f"config.json: a bidirectional {config.get('model_type')} is not supported: {why}")


def decoder_tensors(
    config: Config, spec: EncoderSpec, norms: Mapping[str, str] | None = None, **parts: tuple[str, ...]
) -> TensorNames:
    """`norms` maps the places of a layer's norms to their names, and `parts` its products to theirs, if these are not
    Llama's."""
    norms = norms or {"attention_in": "input_layernorm", "ffn_in": "post_attention_layernorm"}
    names: dict[str, tuple[Part, ...]] = {"embeddings.token": ("embed_tokens.weight",)}
    if spec.qk_norm:
        norms = {**norms, "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
    layers = layer_tensors(spec, "layers", **{**_PARTS, **parts}, **{place: (name,) for place, name in norms.items()})
    return {**names, **layers, **affine("final_norm", "norm", bias=spec.norm.bias)}


def score_head(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """A classifier on the last token."""
    return TaskHead(pooling=LAST, layers=((Dense(spec.hidden_size, outputs, False, "identity"), ("score",)),))


def tagger(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    return TaskHead(((Dense(spec.hidden_size, outputs, True, "identity"), ("score",)),))


HEADS: Mapping[HeadKind, HeadMaker] = {"SequenceClassification": score_head, "TokenClassification": tagger}
GPT_HEADS: Mapping[HeadKind, HeadMaker] = {"SequenceClassification": score_head, "TokenClassification": one_dense}
