"""Granite 3 (IBM): Llama with multipliers of the embeddings, the scores, the residual and the logits."""

from bei.architectures.config import Config
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors
from bei.architectures.family import Family
from bei.architectures.spec import LAST, EncoderSpec


def _granite(config: Config) -> EncoderSpec:
    """`logits_scaling` is of the language model's head (checkpoint/reranking.py)."""
    return decoder_spec(
        config,
        biases=attention_biases(config),
        embedding_scale=float(config.get("embedding_multiplier", 1.0)),
        attention_scale=float(config.get("attention_multiplier", 1.0)),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
    )


GRANITE = Family(_granite, decoder_tensors, PREFIXES, IGNORED, HEADS, LAST)
