"""Qwen2 (arXiv:2407.10671): Llama with biased queries, keys and values. Qwen3 (arXiv:2505.09388): norms on queries and
keys instead."""

from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors, windows
from bei.architectures.family import Config, Family, read
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer


def _layers(config: Config, size: int) -> tuple[Layer, ...]:
    count: int = read(config, "num_hidden_layers")
    if not config.get("use_sliding_window"):
        return (Layer(PRE, rotary=rotary(config, size)),) * count
    if not config.get("layer_types"):
        full = min(config.get("max_window_layers", count), count)
        kinds = ["full_attention"] * full + ["sliding_attention"] * (count - full)
        config = {**config, "layer_types": kinds}
    return tuple(Layer(PRE, window, rotary(config, size)) for window in windows(config))


def _qwen2(config: Config) -> EncoderSpec:
    size = read(config, "hidden_size") // read(config, "num_attention_heads")
    return decoder_spec(config, head_size=size, layers=_layers(config, size), biases=("qkv",))


def _qwen3(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or 128
    layers = _layers(config, size)
    return decoder_spec(config, head_size=size, layers=layers, qk_norm=True, biases=attention_biases(config))


QWEN2 = Family(_qwen2, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
QWEN3 = Family(_qwen3, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
