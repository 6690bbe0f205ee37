"""Llama (arXiv:2302.13971), NVIDIA's bidirectional variant, and Mistral (arXiv:2310.06825), whose attention has a
window."""

from dataclasses import replace

from bei.architectures.decoder import (
    HEADS,
    IGNORED,
    PREFIXES,
    attention_biases,
    decoder_spec,
    decoder_tensors,
    score_head,
)
from bei.architectures.family import Config, Family, TaskHead, read, stated_pooling
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, MEAN, PRE, EncoderSpec, Layer


def _llama(config: Config) -> EncoderSpec:
    return decoder_spec(config, biases=attention_biases(config))


def _mistral(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    window = config.get("sliding_window", 4096)
    layer = Layer(PRE, window - 1 if window else None, rotary(config, size))
    return decoder_spec(config, layers=(layer,) * read(config, "num_hidden_layers"))


def _bidirectional_classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """A classifier on the mean of the tokens, unless `pooling` says otherwise
    (LlamaBidirectionalForSequenceClassification of NVIDIA's llama-nemotron-rerank)."""
    pooling, temperature = stated_pooling(config) or MEAN, float(config.get("temperature") or 1.0)
    return replace(score_head(config, spec, outputs), pooling=pooling, temperature=temperature)


LLAMA = Family(_llama, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
LLAMA_BIDIRECTIONAL = replace(LLAMA, heads={**HEADS, "SequenceClassification": _bidirectional_classifier}, pooling=MEAN)
MISTRAL = Family(_mistral, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
