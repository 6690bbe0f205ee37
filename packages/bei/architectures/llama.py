"""Llama (arXiv:2302.13971), and Mistral (arXiv:2310.06825), which sees no further than a window."""

from dataclasses import replace

from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors
from bei.architectures.family import Config, Family, read
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer, Pooling


def _llama(config: Config) -> EncoderSpec:
    return decoder_spec(config, biases=attention_biases(config))


def _mistral(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    window = config["sliding_window"] - 1 if config.get("sliding_window") else None
    layer = Layer(PRE, window, rotary(config, size))
    return decoder_spec(config, layers=(layer,) * read(config, "num_hidden_layers"))


LLAMA = Family(_llama, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
LLAMA_BIDIRECTIONAL = replace(LLAMA, pooling=Pooling(("mean",)))
MISTRAL = Family(_mistral, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
