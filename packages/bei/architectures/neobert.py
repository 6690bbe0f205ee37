"""NeoBERT (arXiv:2502.19587): pre-norm layers with RMS norm, a gated MLP, rotary embeddings of neighboring pairs."""

from bei.architectures.config import Config, attention_sizes, read, refuse_others
from bei.architectures.family import Family, TaskHead
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, PRE, Dense, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import Part, TensorNames, TensorSlice, affine, layer_tensors, pairs
from bei.architectures.usual_heads import one_dense, two_dense
from bei.errors import SetupError, short

_OTHERS = {"rms_norm": True, "rope": True, "swiglu_packed": True, "ngpt": False}


def _spec(config: Config) -> EncoderSpec:
    hidden = read(config, "hidden_size")
    sizes = attention_sizes(hidden, read(config, "num_attention_heads"))
    refuse_others(config, {**_OTHERS, "dim_head": sizes["head_size"]})
    gate = config.get("hidden_act", "swiglu")
    if gate not in ("swiglu", "silu"):
        raise SetupError(f"config.json: hidden_act {short(gate)} is not supported; supported: swiglu")
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **sizes,
        intermediate_size=_inner(read(config, "intermediate_size")),
        activation="silu",
        gated=True,
        norm=Norm("rms", config.get("norm_eps", 1e-6)),
        layers=(Layer(PRE, rotary=rotary({}, sizes["head_size"])),) * read(config, "num_hidden_layers"),
        max_tokens=config.get("max_position_embeddings") or config.get("max_length", 1024),
        biases=(),
        embedding_norm=False,
        final_norm=True,
    )


def _inner(size: int) -> int:
    """Two thirds of the stated size, rounded up to a multiple of 8: a gated MLP has three matrices."""
    return -(-int(2 * size / 3) // 8) * 8


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = layer_tensors(
        spec,
        "transformer_encoder",
        attention_in=("attention_norm",),
        out=("wo",),
        ffn_in=("ffn_norm",),
        up=("ffn.w12",),
        down=("ffn.w3",),
    )
    return {
        "embeddings.token": ("encoder.weight",),
        **names,
        **{
            f"layers.{i}.qkv.weight": _qkv(spec, f"transformer_encoder.{i}.qkv.weight") for i in range(len(spec.layers))
        },
        **affine("final_norm", "layer_norm", bias=False),
    }


def _qkv(spec: EncoderSpec, name: str) -> tuple[Part, ...]:
    """Query, key and value of a head lie side by side."""
    size = spec.head_size
    heads = range(0, 3 * spec.query_size, 3 * size)
    rotated = (part for offset in (0, size) for head in heads for part in pairs(name, head + offset, size))
    return (*rotated, *(TensorSlice(name, head + 2 * size, head + 3 * size) for head in heads))


def _masked_lm(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    return TaskHead(((Dense(spec.hidden_size, outputs, True, "identity"), ("decoder",)),))


NEOBERT = Family(
    _spec,
    _tensors,
    ("model.", ""),
    (r"decoder\.", r"dense\.", r"classifier\."),
    {
        "SequenceClassification": two_dense("dense", "tanh", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": _masked_lm,
    },
    FIRST,
)
