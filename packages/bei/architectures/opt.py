"""OPT (arXiv:2205.01068): learned positions, and norms before attention and MLP."""

from bei.architectures.config import Config, activation, read, refuse_others
from bei.architectures.decoder import HEADS, gpt_spec, gpt_tensors
from bei.architectures.family import Family
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames

_OTHERS = {
    **{"do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True},
    "layer_norm_elementwise_affine": True,
}
_FIRST = 2  # row of the table of positions


def _spec(config: Config) -> EncoderSpec:
    hidden = read(config, "hidden_size")
    refuse_others(config, {**_OTHERS, "word_embed_proj_dim": hidden})
    return gpt_spec(
        config,
        hidden,
        read(config, "num_attention_heads"),
        intermediate_size=read(config, "ffn_dim"),
        activation=activation(config.get("activation_function", "relu")),
        norm=Norm("layer", 1e-5, bias=True),
        layers=(Layer(PRE),) * read(config, "num_hidden_layers"),
        max_tokens=read(config, "max_position_embeddings"),
        position_offset=_FIRST,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    return gpt_tensors(
        spec,
        "layers",
        tokens="embed_tokens",
        positions="embed_positions",
        final_norm="final_layer_norm",
        attention_in=("self_attn_layer_norm",),
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=("self_attn.out_proj",),
        ffn_in=("final_layer_norm",),
        up=("fc1",),
        down=("fc2",),
    )


OPT = Family(
    _spec,
    _tensors,
    ("model.decoder.", "decoder.", ""),
    (r"lm_head\.", r"score\."),
    HEADS,
    LAST,
)
