"""BLOOM (arXiv:2211.05100): ALiBi instead of positions, and a norm on the embeddings."""

from bei.architectures.decoder import gpt_spec, score_head
from bei.architectures.family import (
    Config,
    Family,
    TensorNames,
    affine,
    layer_tensors,
    one_dense,
    per_head,
    read,
    refuse_others,
)
from bei.architectures.positions import Alibi
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer

_TRAINED = 2048  # tokens: where config.json lacks `seq_length`


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, {"apply_residual_connection_post_layernorm": False})
    hidden = config.get("n_embed") or read(config, "hidden_size")
    heads = config.get("n_head") or read(config, "num_attention_heads")
    return gpt_spec(
        config,
        hidden,
        heads,
        intermediate_size=4 * hidden,
        activation="gelu_tanh",
        layers=(Layer(PRE),) * (config.get("n_layer") or read(config, "num_hidden_layers")),
        max_tokens=config.get("seq_length") or _TRAINED,
        relative_bias=Alibi(),
        embedding_norm=True,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    layers = layer_tensors(
        spec,
        "h",
        attention_in=("input_layernorm",),
        out=("self_attention.dense",),
        ffn_in=("post_attention_layernorm",),
        up=("mlp.dense_h_to_4h",),
        down=("mlp.dense_4h_to_h",),
    )
    names = {"embeddings.token": ("word_embeddings.weight",), **layers, **affine("final_norm", "ln_f")}
    names |= affine("embeddings.norm", "word_embeddings_layernorm")
    for i in range(len(spec.layers)):
        fused = f"h.{i}.self_attention.query_key_value"
        names |= per_head(fused, spec.heads, spec.head_size, True, f"layers.{i}.qkv")
    return names


BLOOM = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (r"lm_head\.", r"score\.", r"classifier\."),
    {"SequenceClassification": score_head, "TokenClassification": one_dense},
    LAST,
)
