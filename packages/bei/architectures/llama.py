"""Llama (arXiv:2302.13971), NVIDIA's bidirectional variant, Mistral (arXiv:2310.06825), whose attention has a window,
and Ministral 3, whose queries grow with their positions."""

from dataclasses import replace

from bei.architectures.config import Config, read, stated_pooling
from bei.architectures.decoder import (
    HEADS,
    IGNORED,
    PREFIXES,
    attention_biases,
    decoder_spec,
    decoder_tensors,
    farthest,
    score_head,
)
from bei.architectures.family import Family, TaskHead
from bei.architectures.positions import QueryGrowth
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, MEAN, PRE, EncoderSpec, Layer
from bei.errors import SetupError

_MINISTRAL3_ROPE = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1},
}
"""transformers' default, Ministral3Config."""


def _llama(config: Config) -> EncoderSpec:
    return decoder_spec(config, biases=attention_biases(config))


def _mistral(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    window = config.get("sliding_window", 4096)
    layer = Layer(PRE, farthest(config, window), rotary(config, size))
    return decoder_spec(config, layers=(layer,) * read(config, "num_hidden_layers"))


def _ministral3(config: Config) -> EncoderSpec:
    config = {"head_dim": 128, "rms_norm_eps": 1e-5, "sliding_window": None, **config}
    if not config.get("rope_parameters"):
        config["rope_parameters"] = config.get("rope_scaling") or _MINISTRAL3_ROPE
    stated = config["rope_parameters"]
    if stated.get("llama_4_scaling_beta") is None:
        raise SetupError("config.json: rope_parameters lacks `llama_4_scaling_beta`")
    growth = QueryGrowth(stated["llama_4_scaling_beta"], read(stated, "original_max_position_embeddings"))
    return replace(_mistral(config), query_growth=growth)


def _bidirectional_classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """A classifier on the mean of the tokens, unless `pooling` says otherwise
    (LlamaBidirectionalForSequenceClassification of NVIDIA's llama-nemotron-rerank)."""
    pooling, temperature = stated_pooling(config) or MEAN, float(config.get("temperature") or 1.0)
    return replace(score_head(config, spec, outputs), pooling=pooling, temperature=temperature)


LLAMA = Family(_llama, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
LLAMA_BIDIRECTIONAL = replace(LLAMA, heads={**HEADS, "SequenceClassification": _bidirectional_classifier}, pooling=MEAN)
MISTRAL = Family(_mistral, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
MINISTRAL3 = replace(MISTRAL, spec=_ministral3)
MINISTRAL3_BIDIRECTIONAL = replace(
    MINISTRAL3, heads={**HEADS, "SequenceClassification": _bidirectional_classifier}, pooling=MEAN
)
