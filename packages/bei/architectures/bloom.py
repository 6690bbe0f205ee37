"""BLOOM (arXiv:2211.05100): ALiBi instead of positions, and a norm on the embeddings."""

from bei.architectures.config import Config, read, refuse_others
from bei.architectures.decoder import GPT_HEADS, gpt_spec, gpt_tensors, refuse_both_ways
from bei.architectures.family import Family
from bei.architectures.positions import Alibi
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, affine, per_head

_TRAINED = 2048  # tokens: where config.json lacks `seq_length`


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, {"apply_residual_connection_post_layernorm": False})
    refuse_both_ways(config, "its positions count in one direction")
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
    names = gpt_tensors(
        spec,
        "h",
        tokens="word_embeddings",
        final_norm="ln_f",
        attention_in=("input_layernorm",),
        out=("self_attention.dense",),
        ffn_in=("post_attention_layernorm",),
        up=("mlp.dense_h_to_4h",),
        down=("mlp.dense_4h_to_h",),
    )
    norm = affine("embeddings.norm", "word_embeddings_layernorm")
    return {**names, **norm, **per_head(spec, "h.{}.self_attention.query_key_value")}


BLOOM = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (r"lm_head\.", r"score\.", r"classifier\."),
    GPT_HEADS,
    LAST,
)
