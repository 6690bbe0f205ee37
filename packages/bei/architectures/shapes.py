"""The shape of every tensor that a spec needs, by our names."""

from bei.architectures.spec import Dense, EncoderSpec, LayerNorm, Normalize
from bei.errors import SetupError


def tensor_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Raises SetupError where the stages of the head do not fit one another."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes = {
        "embeddings.token": (spec.vocab_size, hidden),
        "embeddings.position": (spec.position_offset + spec.max_tokens, hidden),
    }
    if spec.token_types:
        shapes["embeddings.token_type"] = (spec.token_types, hidden)
    if spec.relative_bias:
        shapes["relative_bias"] = (spec.relative_bias.buckets, spec.heads)
    norms = [
        "embeddings.norm",
        *(f"layers.{i}.{n}" for i in range(spec.layers) for n in ("attention_norm", "ffn_norm")),
    ]
    shapes |= {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}
    linears = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for i in range(spec.layers):
        for linear, shape in linears.items():
            shapes |= {f"layers.{i}.{linear}.weight": shape, f"layers.{i}.{linear}.bias": shape[:1]}
    return shapes | _head_shapes(spec)


def _head_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    width = spec.hidden_size * len(spec.pooling.modes)
    for i, stage in enumerate(spec.head):
        match stage:
            case Dense(inputs, outputs, bias, _):
                if inputs != width:
                    raise SetupError(f"modules.json: a Dense takes {inputs} numbers, the stage before it gives {width}")
                shapes[f"head.{i}.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"head.{i}.bias"] = (outputs,)
                width = outputs
            case LayerNorm(size, _):
                shapes |= {f"head.{i}.weight": (size,), f"head.{i}.bias": (size,)}
            case Normalize():
                pass
    return shapes
