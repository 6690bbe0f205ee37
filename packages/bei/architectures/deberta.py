"""DeBERTa (arXiv:2006.03654) and its versions 2 and 3 (arXiv:2111.09543): BERT with relative positions in its attention
scores. The xlarge models of version 2 have a convolution beside the first layer."""

from collections.abc import Mapping
from typing import Any

from bei.architectures.config import Config, activation, attention_sizes, bert_sizes, read, refuse_others
from bei.architectures.family import Family, HeadKind
from bei.architectures.shapes import position_projections
from bei.architectures.spec import FIRST, Convolution, Disentangled, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import Part, TensorNames, TensorSlice, Zeros, affine, bert_tensors
from bei.architectures.usual_heads import BERT_MASKED_LM, HeadMaker, one_dense, two_dense
from bei.errors import SetupError, short


def _v2(config: Config) -> EncoderSpec:
    return _spec(config, own_projections=not config.get("share_att_key"))


def _v1(config: Config) -> EncoderSpec:
    refuse_others(config, {"talking_head": False})
    older = {"position_buckets": -1, "norm_rel_ebd": "none", "conv_kernel_size": 0, "attention_head_size": None}
    return _spec({**config, **older}, own_projections=True)


def _spec(config: Config, own_projections: bool) -> EncoderSpec:
    hidden = read(config, "hidden_size")
    if config.get("embedding_size", hidden) != hidden:
        raise SetupError("config.json: an embedding_size other than hidden_size is not supported")
    norm = Norm("layer", config.get("layer_norm_eps", 1e-7), bias=True)
    relative = _relative(config, norm, own_projections) if config.get("relative_attention") else None
    terms = 1 + len({"c2p", "p2c"} & set(_kinds(config)))  # of scores, even where there are no relative positions
    sizes = attention_sizes(hidden, read(config, "num_attention_heads"), config.get("attention_head_size"))
    return EncoderSpec(
        **bert_sizes(config),
        **{**sizes, "attention_scale": (sizes["head_size"] * terms) ** -0.5},
        norm=norm,
        layers=(Layer(),) * read(config, "num_hidden_layers"),
        max_tokens=read(config, "max_position_embeddings"),
        relative_bias=relative,
        convolution=_convolution(config, hidden) if config.get("conv_kernel_size") else None,
        position_offset=0 if config.get("position_biased_input", True) else None,
        token_types=config.get("type_vocab_size", 0),
    )


def _relative(config: Config, norm: Norm, own_projections: bool) -> Disentangled:
    kinds, buckets = _kinds(config), config.get("position_buckets", -1)
    longest = config.get("max_relative_positions", -1)
    longest = longest if longest >= 1 else read(config, "max_position_embeddings")
    return Disentangled(
        buckets=buckets if buckets > 0 else longest,
        max_distance=longest,
        logarithmic=buckets > 0,
        content_to_position="c2p" in kinds,
        position_to_content="p2c" in kinds,
        norm=norm if "layer_norm" in (config.get("norm_rel_ebd") or "") else None,
        own_projections=own_projections,
    )


def _kinds(config: Config) -> list[str]:
    stated = config.get("pos_att_type") or ()
    return [kind.strip() for kind in stated.lower().split("|")] if isinstance(stated, str) else list(stated)


def _convolution(config: Config, hidden: int) -> Convolution:
    taps, groups = config["conv_kernel_size"], config.get("conv_groups", 1)
    if type(taps) is not int or taps < 1 or taps % 2 == 0:
        raise SetupError(f"config.json: conv_kernel_size {short(taps)} is not supported; supported: odd numbers")
    if type(groups) is not int or groups < 1 or hidden % groups:
        raise SetupError(f"config.json: conv_groups {short(groups)} does not divide hidden_size {hidden}")
    return Convolution(taps, groups, activation(config.get("conv_act", "tanh")))


def _v2_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(
        bert_tensors(
            config,
            spec,
            qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        )
    )
    if spec.convolution:
        names |= {**affine("convolution", "encoder.conv.conv"), **affine("convolution.norm", "encoder.conv.LayerNorm")}
    theirs = {"position_query": "pos_query_proj", "position_key": "pos_key_proj"}
    for i, attention in enumerate(_attentions(spec)):
        for part in position_projections(spec):
            names |= affine(f"layers.{i}.{part}", f"{attention}.{theirs[part]}")
    return names | _relative_tensors(spec)


def _v1_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    """Queries, keys and values of each head lie side by side, and keys have no bias."""
    names = {**bert_tensors(config, spec), **_relative_tensors(spec)}
    size, parts = spec.head_size, position_projections(spec)
    starts = [part * size + head * 3 * size for part in range(3) for head in range(spec.heads)]
    for i, attention in enumerate(_attentions(spec)):
        none = Zeros(f"{attention}.q_bias")
        heads = (TensorSlice(f"{attention}.in_proj.weight", start, start + size) for start in starts)
        names[f"layers.{i}.qkv.weight"] = tuple(heads)
        names[f"layers.{i}.qkv.bias"] = (f"{attention}.q_bias", none, f"{attention}.v_bias")
        if "position_query" in parts:
            names |= affine(f"layers.{i}.position_query", f"{attention}.pos_q_proj")
        if "position_key" in parts:
            names[f"layers.{i}.position_key.weight"] = (f"{attention}.pos_proj.weight",)
            names[f"layers.{i}.position_key.bias"] = (none,)
    return names


def _attentions(spec: EncoderSpec) -> list[str]:
    return [f"encoder.layer.{i}.attention.self" for i in range(len(spec.layers))]


def _relative_tensors(spec: EncoderSpec) -> dict[str, tuple[Part, ...]]:
    if not isinstance(spec.relative_bias, Disentangled):
        return {}
    names: dict[str, Any] = {"relative_positions.weight": ("encoder.rel_embeddings.weight",)}
    return names | (affine("relative_positions.norm", "encoder.LayerNorm") if spec.relative_bias.norm else {})


_PREFIXES = ("deberta.", "")
_IGNORED = (r"pooler\.", r"classifier\.", r"cls\.", r"lm_predictions\.", r"mask_predictions\.")
_HEADS: Mapping[HeadKind, HeadMaker] = {
    "SequenceClassification": two_dense("pooler.dense", "gelu", "classifier", "pooler_hidden_act"),
    "TokenClassification": one_dense,
    "MaskedLM": BERT_MASKED_LM,
}
DEBERTA_V1 = Family(_v1, _v1_tensors, _PREFIXES, _IGNORED, _HEADS, FIRST)
DEBERTA = Family(_v2, _v2_tensors, _PREFIXES, _IGNORED, _HEADS, FIRST)
