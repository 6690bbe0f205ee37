"""A model without an encoder: a text's vector is the mean of a learned row per token (sentence-transformers'
StaticEmbedding; Model2Vec)."""

from bei.architectures.config import Config
from bei.architectures.family import Family
from bei.architectures.spec import MEAN, EncoderSpec, Norm
from bei.architectures.tensor_names import TensorNames


def _spec(config: Config) -> EncoderSpec:
    size = config["hidden_size"]
    return EncoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=size,
        embedding_size=size,
        intermediate_size=size,
        heads=1,
        kv_heads=1,
        head_size=size,
        attention_scale=1.0,
        activation="identity",
        norm=Norm("layer", 0.0),
        embedding_norm=False,
        layers=(),
        biases=(),
        max_tokens=config["max_tokens"],
        pooling=MEAN,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    return {"embeddings.token": ("embedding.weight",)}


STATIC = Family(_spec, _tensors, ("",), (r"(?!)",), {}, MEAN)
