"""GPT-Neo (EleutherAI): GPT-2 whose every other layer has a window, and whose scores are not scaled."""

from bei.architectures.config import Config, activation, read
from bei.architectures.decoder import GPT_HEADS, gpt_spec, refuse_both_ways
from bei.architectures.family import Family
from bei.architectures.gpt2 import gpt2_tensors
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames
from bei.errors import SetupError, short

_KINDS = ("global", "local")


def _spec(config: Config) -> EncoderSpec:
    refuse_both_ways(config, "its attention hides the tokens after each one, whatever config.json says")
    hidden = read(config, "hidden_size")
    return gpt_spec(
        config,
        hidden,
        read(config, "num_heads"),
        attention_scale=1.0,
        intermediate_size=config.get("intermediate_size") or 4 * hidden,
        activation=activation(config.get("activation_function", "gelu_new")),
        layers=tuple(Layer(PRE, window) for window in _windows(config)),
        max_tokens=read(config, "max_position_embeddings"),
        position_offset=0,
        biases=("out", "up", "down"),
    )


def _windows(config: Config) -> list[int | None]:
    """By `attention_types`: groups of kinds, each with the number of its repetitions."""
    count, groups = read(config, "num_layers"), read(config, "attention_types")
    try:
        kinds = [str(kind) for group, times in groups for kind in list(group) * times]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != count or any(kind not in _KINDS for kind in kinds):
        raise SetupError(
            f"config.json: attention_types {short(groups)} must name {count} layers (num_layers), each "
            f'{" or ".join(_KINDS)}, as [[["global", "local"], {count // 2}]]'
        )
    return [config.get("window_size", 256) - 1 if kind == "local" else None for kind in kinds]


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    qkv = ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj")
    return gpt2_tensors(spec, qkv, "attn.attention.out_proj")


GPT_NEO = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (r"lm_head\.", r"score\.", r"classifier\.", r"h\.\d+\.attn\.attention\.(bias|masked_bias)$"),
    GPT_HEADS,
    LAST,
)
