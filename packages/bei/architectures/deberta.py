"""DeBERTa v2 and v3 (arXiv:2006.03654, arXiv:2111.09543): BERT with relative positions in its attention scores."""

from bei.architectures.family import (
    Config,
    Family,
    TaskHead,
    TensorNames,
    activation,
    affine,
    attention_sizes,
    bert_tensors,
    masked_lm,
    one_dense,
    read,
    two_dense,
)
from bei.architectures.spec import FIRST, Disentangled, EncoderSpec, Layer, Norm
from bei.errors import SetupError


def _spec(config: Config) -> EncoderSpec:
    hidden = read(config, "hidden_size")
    if config.get("conv_kernel_size"):
        raise SetupError("config.json: conv_kernel_size (deberta-v2-xlarge) is not supported")
    if config.get("embedding_size", hidden) != hidden:
        raise SetupError("config.json: an embedding_size other than hidden_size is not supported")
    norm = Norm("layer", config.get("layer_norm_eps", 1e-7), bias=True)
    relative = _relative(config, norm) if config.get("relative_attention") else None
    terms = 1 + (relative.content_to_position + relative.position_to_content if relative else 0)
    sizes = attention_sizes(hidden, read(config, "num_attention_heads"))
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **{**sizes, "attention_scale": (sizes["head_size"] * terms) ** -0.5},
        intermediate_size=read(config, "intermediate_size"),
        activation=activation(config.get("hidden_act", "gelu")),
        norm=norm,
        layers=(Layer(),) * read(config, "num_hidden_layers"),
        max_tokens=read(config, "max_position_embeddings"),
        relative_bias=relative,
        position_offset=0 if config.get("position_biased_input", True) else None,
        token_types=config.get("type_vocab_size", 0),
    )


def _relative(config: Config, norm: Norm) -> Disentangled:
    if not config.get("share_att_key"):
        raise SetupError("config.json: share_att_key false is not supported")
    kinds, buckets = config.get("pos_att_type") or (), config.get("position_buckets", -1)
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    longest = config.get("max_relative_positions", -1)
    longest = longest if longest >= 1 else read(config, "max_position_embeddings")
    return Disentangled(
        buckets=buckets if buckets > 0 else longest,
        max_distance=longest,
        logarithmic=buckets > 0,
        content_to_position="c2p" in kinds,
        position_to_content="p2c" in kinds,
        norm=norm if "layer_norm" in (config.get("norm_rel_ebd") or "") else None,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(
        bert_tensors(
            config,
            spec,
            qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        )
    )
    if isinstance(spec.relative_bias, Disentangled):
        names["relative_positions.weight"] = ("encoder.rel_embeddings.weight",)
        names |= affine("relative_positions.norm", "encoder.LayerNorm") if spec.relative_bias.norm else {}
    return names


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """config.json names the activation of transformers' ContextPooler."""
    pooled = activation(config.get("pooler_hidden_act", "gelu"))
    return two_dense("pooler.dense", pooled, "classifier")(config, spec, outputs)


DEBERTA = Family(
    _spec,
    _tensors,
    ("deberta.", ""),
    (r"pooler\.", r"classifier\.", r"cls\.", r"lm_predictions\.", r"mask_predictions\."),
    {
        "SequenceClassification": _classifier,
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            "cls.predictions",
        ),
    },
    FIRST,
)
