"""JinaBERT v2 (arXiv:2310.19923): BERT with ALiBi instead of positions, and a gated MLP. Its model_type is `bert`."""

from dataclasses import replace
from functools import partial

from bei.architectures.bert import BERT
from bei.architectures.family import Config, Family, activation, bert_tensors, read
from bei.architectures.spec import Alibi, EncoderSpec

_GATES = {"geglu": "gelu", "reglu": "relu", "swiglu": "silu"}


def _spec(config: Config) -> EncoderSpec:
    kind = read(config, "feed_forward_type")
    return replace(
        BERT.spec({**config, "position_embedding_type": "absolute"}),
        position_offset=None,
        relative_bias=Alibi(),
        gated=True,
        activation=activation(_GATES.get(kind, kind)),
        biases=("qkv", "out", "down"),
    )


_tensors = partial(
    bert_tensors,
    up=("mlp.gated_layers",),
    down=("mlp.wo",),
    ffn_end=("mlp.layernorm",),
)

JINA_BERT = Family(_spec, _tensors, BERT.prefixes, BERT.ignored, BERT.heads, BERT.pooling)
