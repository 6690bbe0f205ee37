"""GPT-NeoX (arXiv:2204.06745) and Pythia: attention and MLP side by side, and a quarter of each head rotated."""

from bei.architectures.config import Config, activation, read
from bei.architectures.decoder import GPT_HEADS, gpt_spec, gpt_tensors
from bei.architectures.family import Family
from bei.architectures.rope import longest, rotary
from bei.architectures.spec import LAST, LINEARS, PRE, EncoderSpec, Layer, LinearName, Norm
from bei.architectures.tensor_names import TensorNames, per_head


def _spec(config: Config) -> EncoderSpec:
    hidden, heads = read(config, "hidden_size"), read(config, "num_attention_heads")
    older = {"rope_theta": config.get("rotary_emb_base", 10_000.0)}
    rotated = rotary({**older, **config}, hidden // heads, partial=config.get("rotary_pct", 0.25))
    mlp: tuple[LinearName, ...] = ("up", "down")
    return gpt_spec(
        config,
        hidden,
        heads,
        intermediate_size=read(config, "intermediate_size"),
        activation=activation(config.get("hidden_act", "gelu")),
        norm=Norm("layer", config.get("layer_norm_eps", 1e-5), bias=True),
        layers=(Layer(PRE, rotary=rotated),) * read(config, "num_hidden_layers"),
        max_tokens=longest(config),
        biases=LINEARS if config.get("attention_bias", True) else mlp,
        parallel=config.get("use_parallel_residual", True),
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = gpt_tensors(
        spec,
        "layers",
        tokens="embed_in",
        final_norm="final_layer_norm",
        attention_in=("input_layernorm",),
        out=("attention.dense",),
        ffn_in=("post_attention_layernorm",),
        up=("mlp.dense_h_to_4h",),
        down=("mlp.dense_4h_to_h",),
    )
    return {**names, **per_head(spec, "layers.{}.attention.query_key_value")}


GPT_NEOX = Family(
    _spec,
    _tensors,
    ("gpt_neox.", ""),
    (r"embed_out\.", r"lm_head\.", r"score\.", r"classifier\.", r"layers\.\d+\.attention\.(bias|masked_bias)$"),
    GPT_HEADS,
    LAST,
)
