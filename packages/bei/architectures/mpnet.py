"""MPNet (arXiv:2004.09297): BERT with a relative bias on attention scores, shared by all layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bei.architectures.bert import BERT
from bei.architectures.config import read
from bei.architectures.family import Family
from bei.architectures.positions import RelativeBias
from bei.architectures.spec import EncoderSpec
from bei.architectures.tensor_names import TensorNames, bert_tensors
from bei.architectures.usual_heads import masked_lm, one_dense, two_dense

_POSITION_OFFSET = 2  # transformers' MPNetEmbeddings fixes padding_idx to 1, whatever pad_token_id says
_MAX_DISTANCE = 128  # transformers' MPNetEncoder.relative_position_bucket


def _spec(config: Mapping[str, Any]) -> EncoderSpec:
    return replace(
        BERT.spec(config),
        max_tokens=read(config, "max_position_embeddings") - _POSITION_OFFSET,
        position_offset=_POSITION_OFFSET,
        token_types=0,
        relative_bias=RelativeBias(config.get("relative_attention_num_buckets", 32), _MAX_DISTANCE),
    )


def _tensors(config: Mapping[str, Any], spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(
        config,
        spec,
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        out=("attention.attn.o",),
        attention_end=("attention.LayerNorm",),
    )
    return {**names, "relative_bias": ("encoder.relative_attention_bias.weight",)}


MPNET = Family(
    _spec,
    _tensors,
    ("", "mpnet."),
    (r"pooler\.", r"lm_head\.", r"classifier\."),
    heads={
        "SequenceClassification": two_dense("classifier.dense", "tanh", "classifier.out_proj"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head", activation="gelu"),
    },
)
