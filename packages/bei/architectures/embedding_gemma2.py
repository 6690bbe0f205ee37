"""The text model of EmbeddingGemma 2 (transformers, EmbeddingGemma2TextModel): bidirectional layers, of which those
without a window have larger heads, and every one has an input of its own. A multimodal checkpoint is served as its text
model."""

from typing import Any

from bei.architectures.config import Config, activation, layer_kinds, read
from bei.architectures.decoder import attention_biases, decoder_spec, decoder_tensors
from bei.architectures.family import Family, NamedHeadLayer
from bei.architectures.gemma import SANDWICH_NAMES
from bei.architectures.layer_parts import Heads, LayerInputs
from bei.architectures.limits import check_counts
from bei.architectures.rope import rotary
from bei.architectures.spec import MEAN, SANDWICH, Dense, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames
from bei.errors import SetupError, short

_BASES = {"sliding_attention": 1e4, "full_attention": 1e6}
_OWN = ("head_dim", "num_key_value_heads")


def _text(config: Config) -> Config:
    """The text model's part of a multimodal config.json."""
    text: Config = config.get("text_config") or config
    check_counts(text)
    return text


def _spec(config: Config) -> EncoderSpec:
    text = _text(config)
    count, pattern = read(text, "num_hidden_layers"), text.get("sliding_window_pattern", 6)
    default = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)]
    kinds = [*layer_kinds(text, default)[:-1], "full_attention"]
    return decoder_spec(
        {"head_dim": 256, **text},
        layers=tuple(_layer(text, i, kind) for i, kind in enumerate(kinds)),
        kv_heads=text.get("num_key_value_heads", 2),
        activation=activation(text.get("hidden_activation", "gelu_pytorch_tanh")),
        attention_scale=1.0,
        embedding_scale=read(text, "hidden_size") ** 0.5,
        causal=False,
        qk_norm=True,
        value_norm=True,
        biases=attention_biases(text),
        layer_inputs=LayerInputs(text.get("hidden_size_per_layer_input", 512)),
    )


def _layer(text: Config, i: int, kind: str) -> Layer:
    """`sliding_window` is the largest distance, on both sides."""
    size, kv_heads = _sizes(text, i, kind)
    window = None if kind == "full_attention" else text.get("sliding_window", 512)
    differs = (size, kv_heads) != (text.get("head_dim", 256), text.get("num_key_value_heads", 2))
    heads = Heads(kv_heads, size) if differs else None
    return Layer(SANDWICH, window, rotary(text, size, kind, _BASES[kind]), heads=heads)


def _sizes(text: Config, i: int, kind: str) -> tuple[int, int]:
    """The size of a head and the number of keys: of `per_layer_config`, whose absence stands for wider layers without a
    window (transformers, EmbeddingGemma2TextConfig)."""
    stated: Any = text.get("per_layer_config")
    if stated is None:
        wide = {"head_dim": text.get("global_head_dim", 512)}
        wide["num_key_value_heads"] = text.get("num_global_key_value_heads", 1)
        stated = {str(i): wide} if kind == "full_attention" else {}
    own = stated.get(str(i)) or {}
    strange = next((key for key in own if key not in _OWN), None)
    if strange is not None:
        raise SetupError(f"config.json: per_layer_config: {short(strange)} is not supported")
    size: int = own.get("head_dim") or text.get("head_dim", 256)
    kv_heads: int = own.get("num_key_value_heads") or text.get("num_key_value_heads", 2)
    return size, kv_heads


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names: dict[str, Any] = dict(decoder_tensors(config, spec, SANDWICH_NAMES))
    names["layer_inputs.project.weight"] = ("ple.per_layer_model_projection.weight",)
    names["layer_inputs.norm.weight"] = ("ple.per_layer_projection_norm.weight",)
    for i in range(len(spec.layers)):
        block = f"layers.{i}.ple_block"
        names |= {
            f"layers.{i}.input_gate.weight": (f"{block}.per_layer_input_gate.weight",),
            f"layers.{i}.input_out.weight": (f"{block}.per_layer_projection.weight",),
            f"layers.{i}.input_norm.weight": (f"{block}.post_per_layer_input_norm.weight",),
            f"layers.{i}.scale": (f"layers.{i}.layer_scalar",),
        }
    return names


def _projection(config: Config, spec: EncoderSpec) -> tuple[NamedHeadLayer, ...]:
    outputs = _text(config).get("embedding_dim", 768)
    return ((Dense(spec.hidden_size, outputs, False, "identity"), ("embedding_projection",)),)


EMBEDDING_GEMMA2 = Family(
    _spec,
    _tensors,
    ("language_model.", "model.language_model.", "model.", ""),
    (r"(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\.",),
    {},
    MEAN,
    _projection,
)
