"""The shape of every tensor that a spec needs, by our names."""

from bei.architectures.spec import Dense, EncoderSpec, LayerNorm, Stage
from bei.errors import SetupError


def tensor_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Raises SetupError where the stages of a head do not fit one another."""
    hidden, inner, embedding = spec.hidden_size, spec.intermediate_size, spec.embedding_size
    shapes = {
        "embeddings.token": (spec.vocab_size, embedding),
        "embeddings.position": (spec.position_offset + spec.max_tokens, embedding),
        "embeddings.norm.weight": (embedding,),
        "embeddings.norm.bias": (embedding,),
    }
    if spec.token_types:
        shapes["embeddings.token_type"] = (spec.token_types, embedding)
    if embedding != hidden:
        shapes |= {"embeddings.project.weight": (hidden, embedding), "embeddings.project.bias": (hidden,)}
    if spec.relative_bias:
        shapes["relative_bias"] = (spec.relative_bias.buckets, spec.heads)
    norms = [f"layers.{i}.{norm}" for i in range(spec.layers) for norm in ("attention_norm", "ffn_norm")]
    shapes |= {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}
    linears = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for i in range(spec.layers):
        for linear, shape in linears.items():
            shapes |= {f"layers.{i}.{linear}.weight": shape, f"layers.{i}.{linear}.bias": shape[:1]}
    pooled_size = spec.token_size * len(spec.pooling.modes)
    token_head = _stage_shapes("token_head", spec.token_head, hidden)
    return shapes | token_head | _stage_shapes("head", spec.head, pooled_size)


def _stage_shapes(name: str, stages: tuple[Stage, ...], width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, stage in enumerate(stages):
        match stage:
            case Dense(inputs, outputs, bias, _):
                if inputs != width:
                    raise SetupError(f"a Dense takes {inputs} numbers, the stage before it gives {width}")
                shapes[f"{name}.{i}.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"{name}.{i}.bias"] = (outputs,)
                width = outputs
            case LayerNorm(size, _):
                shapes |= {f"{name}.{i}.weight": (size,), f"{name}.{i}.bias": (size,)}
    return shapes
