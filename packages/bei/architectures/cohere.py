"""Cohere's Command R (`cohere`) and Command R7B (`cohere2`, with windows): attention and MLP side by side on one layer
norm, and pairs of adjacent numbers rotated."""

from bei.architectures.config import Config, read, refuse_others
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors, windows
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames, adjacent_pairs


def _spec(config: Config, layers: tuple[Layer, ...]) -> EncoderSpec:
    """`logit_scale` is of the language model's head (checkpoint/reranking.py)."""
    return decoder_spec(
        config,
        layers=layers,
        norm=Norm("layer", config.get("layer_norm_eps", 1e-5)),
        biases=attention_biases(config),
        parallel=True,
    )


def _size(config: Config) -> int:
    size: int = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    return size


def _cohere(config: Config) -> EncoderSpec:
    refuse_others(config, {"use_qk_norm": False})
    rotated = rotary({"rope_theta": 5e5, **config}, _size(config))
    return _spec(config, (Layer(PRE, rotary=rotated),) * read(config, "num_hidden_layers"))


def _cohere2(config: Config) -> EncoderSpec:
    """Layers without a window have no positions."""
    rotated, every = rotary(config, _size(config)), config.get("sliding_window_pattern", 4)
    if not config.get("layer_types"):
        kinds = (
            "sliding_attention" if (i + 1) % every else "full_attention"
            for i in range(read(config, "num_hidden_layers"))
        )
        config = {**config, "layer_types": list(kinds)}
    config = {"sliding_window": 4096, **config}
    return _spec(config, tuple(Layer(PRE, of, None if of is None else rotated) for of in windows(config)))


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    norms = {"attention_in": "input_layernorm", "ffn_in": "input_layernorm"}
    return adjacent_pairs(decoder_tensors(config, spec, norms), spec)


COHERE = Family(_cohere, _tensors, PREFIXES, IGNORED, HEADS, LAST)
COHERE2 = Family(_cohere2, _tensors, PREFIXES, IGNORED, HEADS, LAST)
