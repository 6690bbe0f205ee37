"""DistilBERT (arXiv:1910.01108): BERT without token types, under other names."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from bei.architectures.family import (
    Family,
    activation,
    attention_sizes,
    bert_tensors,
    masked_lm,
    one_dense,
    read,
    two_dense,
)
from bei.architectures.spec import FIRST, EncoderSpec, Layer, Norm


def _spec(config: Mapping[str, Any]) -> EncoderSpec:
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=read(config, "dim"),
        layers=(Layer(),) * read(config, "n_layers"),
        **attention_sizes(read(config, "dim"), read(config, "n_heads")),
        intermediate_size=read(config, "hidden_dim"),
        activation=activation(config.get("activation", "gelu")),
        norm=Norm("layer", 1e-12, bias=True),
        max_tokens=read(config, "max_position_embeddings"),
        position_offset=0,
        token_types=0,
        embedding_size=read(config, "dim"),
    )


_tensors = partial(
    bert_tensors,
    layer="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out=("attention.out_lin",),
    attention_end=("sa_layer_norm",),
    up=("ffn.lin1",),
    down=("ffn.lin2",),
    ffn_end=("output_layer_norm",),
)

DISTILBERT = Family(
    _spec,
    _tensors,
    ("", "distilbert."),
    (r"vocab_", r"classifier\.", r"pre_classifier\.", r"qa_outputs\."),
    heads={
        "SequenceClassification": two_dense("pre_classifier", "relu", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    },
    pooling=FIRST,
)
