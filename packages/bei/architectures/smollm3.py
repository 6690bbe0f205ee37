"""SmolLM3 (Hugging Face): Llama, every fourth layer of which has no positions (NoPE, arXiv:2501.18795)."""

from bei.architectures.config import Config, read
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors, windows
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer
from bei.errors import SetupError


def _smollm3(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    rotates = _rotating(config)
    rotated = rotary({"rope_theta": 2e6, **config}, size)
    layers = tuple(
        Layer(PRE, window, rotated if rotates_here else None)
        for window, rotates_here in zip(_windows(config, rotates), rotates, strict=True)
    )
    kv_heads = config.get("num_key_value_heads", 4)
    return decoder_spec(config, layers=layers, kv_heads=kv_heads, biases=attention_biases(config))


def _rotating(config: Config) -> list[int]:
    """One number for each layer: 0 if it has no positions. Despite its name, `no_rope_layers` is that list."""
    count, every = read(config, "num_hidden_layers"), config.get("no_rope_layer_interval", 4)
    stated: list[int] = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
    if len(stated) != count:
        raise SetupError(f"config.json: no_rope_layers names {len(stated)} layers, num_hidden_layers {count}")
    return stated


def _windows(config: Config, rotates: list[int]) -> tuple[int | None, ...]:
    """By `layer_types`, else a window for the layers without positions."""
    slides = bool(config.get("use_sliding_window") and config.get("sliding_window"))
    kinds = ["full_attention" if rotates_here or not slides else "sliding_attention" for rotates_here in rotates]
    found = windows({"layer_types": kinds, **{key: of for key, of in config.items() if of is not None}})
    if not slides and any(window is not None for window in found):
        raise SetupError("config.json: layer_types has windows, and use_sliding_window is false")
    return found


SMOLLM3 = Family(_smollm3, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
