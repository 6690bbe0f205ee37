"""GPT-J (EleutherAI): attention and MLP side by side on one norm, and pairs of adjacent numbers rotated."""

from bei.architectures.config import Config, activation, read
from bei.architectures.decoder import gpt_spec, gpt_tensors, score_head
from bei.architectures.family import Family
from bei.architectures.positions import Rotary
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, adjacent_pairs


def _spec(config: Config) -> EncoderSpec:
    hidden, heads = read(config, "n_embd"), read(config, "n_head")
    return gpt_spec(
        config,
        hidden,
        heads,
        intermediate_size=config.get("n_inner") or 4 * hidden,
        activation=activation(config.get("activation_function", "gelu_new")),
        layers=(Layer(PRE, rotary=_rotary(config, hidden // heads)),) * read(config, "n_layer"),
        max_tokens=read(config, "n_positions"),
        biases=("up", "down"),
        parallel=True,
    )


def _rotary(config: Config, size: int) -> Rotary:
    """Pairs of all numbers of a head, those beyond `rotary_dim` by no angle: their halves lie apart, too."""
    rotated = rotary({}, config.get("rotary_dim", 64)).frequencies
    return Rotary((*rotated, *[0.0] * (size // 2 - len(rotated))))


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = gpt_tensors(
        spec,
        "h",
        tokens="wte",
        final_norm="ln_f",
        attention_in=("ln_1",),
        ffn_in=("ln_1",),
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out=("attn.out_proj",),
        up=("mlp.fc_in",),
        down=("mlp.fc_out",),
    )
    return adjacent_pairs(names, spec)


GPTJ = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (r"lm_head\.", r"score\.", r"h\.\d+\.attn\.(bias|masked_bias)$"),
    {"SequenceClassification": score_head},
    LAST,
)
