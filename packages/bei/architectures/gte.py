"""Alibaba's GTE, "new" (arXiv:2407.19669): BERT with rotary and a gated MLP."""

from bei.architectures.config import Config, attention_sizes, bert_sizes, read, refuse_others
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames, bert_tensors, gate_last
from bei.architectures.usual_heads import masked_lm, one_dense, two_dense

_OTHERS = {"logn_attention_scale": False, "position_embedding_type": "rope", "layer_norm_type": "layer_norm"}


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, _OTHERS)
    hidden, base = read(config, "hidden_size"), 160_000.0 if config.get("model_type") == "gte" else 10_000.0
    sizes = attention_sizes(hidden, read(config, "num_attention_heads"), config.get("head_dim"))
    rotated = rotary({"rope_theta": base, **config}, sizes["head_size"])
    return EncoderSpec(
        **bert_sizes(config),
        **sizes,
        gated=True,
        norm=Norm("layer", config.get("layer_norm_eps", 1e-12), bias=True),
        layers=(Layer(rotary=rotated),) * read(config, "num_hidden_layers"),
        max_tokens=read(config, "max_position_embeddings"),
        biases=("qkv", "out", "down"),
        token_types=config.get("type_vocab_size", 1),
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(
        config,
        spec,
        qkv=("attention.qkv_proj",),
        out=("attention.o_proj",),
        attention_end=("attn_ln",),
        down=("mlp.down_proj",),
        ffn_end=("mlp_ln",),
    )
    return {**names, **gate_last(spec, "encoder.layer.{}.mlp.up_gate_proj")}


GTE = Family(
    _spec,
    _tensors,
    ("new.", "", "gte."),
    (r"pooler\.", r"lm_head\.", r"classifier\."),
    {
        "SequenceClassification": two_dense("pooler.dense", "tanh", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head", activation="gelu"),
    },
    FIRST,
)
