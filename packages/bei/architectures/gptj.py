"""GPT-J (EleutherAI): attention and MLP side by side on one norm, and pairs of adjacent numbers rotated."""

from typing import Any

from bei.architectures.decoder import is_causal, score_head
from bei.architectures.family import (
    Config,
    Family,
    TensorNames,
    activation,
    adjacent_pairs,
    affine,
    attention_sizes,
    layer_tensors,
    read,
)
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer, Norm, Rotary


def _spec(config: Config) -> EncoderSpec:
    hidden, sizes = read(config, "n_embd"), attention_sizes(read(config, "n_embd"), read(config, "n_head"))
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **sizes,
        intermediate_size=config.get("n_inner") or 4 * hidden,
        activation=activation(config.get("activation_function", "gelu_new")),
        norm=Norm("layer", config.get("layer_norm_epsilon", 1e-5), bias=True),
        layers=(Layer(PRE, rotary=_rotary(config, sizes["head_size"])),) * read(config, "n_layer"),
        max_tokens=read(config, "n_positions"),
        biases=("up", "down"),
        parallel=True,
        causal=is_causal(config),
        embedding_norm=False,
        final_norm=True,
        pooling=LAST,
    )


def _rotary(config: Config, size: int) -> Rotary:
    """Pairs of all numbers of a head, those beyond `rotary_dim` by no angle: their halves lie apart, too."""
    rotated = rotary({}, config.get("rotary_dim", 64)).frequencies
    return Rotary((*rotated, *[0.0] * (size // 2 - len(rotated))))


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    layers = layer_tensors(
        spec,
        "h",
        attention_in=("ln_1",),
        ffn_in=("ln_1",),
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out=("attn.out_proj",),
        up=("mlp.fc_in",),
        down=("mlp.fc_out",),
    )
    names: dict[str, Any] = {"embeddings.token": ("wte.weight",), **layers, **affine("final_norm", "ln_f")}
    return adjacent_pairs(names, spec)


GPTJ = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (r"lm_head\.", r"score\.", r"h\.\d+\.attn\.(bias|masked_bias)$"),
    {"SequenceClassification": score_head},
    LAST,
)
