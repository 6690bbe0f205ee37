"""JinaBERT v2 (arXiv:2310.19923): BERT with ALiBi instead of positions, and a gated MLP. Its model_type is `bert`.
jina-embeddings-v2-base-code, whose code is `jina-bert-v2-qk-post-norm`, also norms queries and keys, and adds the input
of attention twice."""

from dataclasses import replace
from functools import partial
from typing import Any

from bei.architectures.bert import BERT
from bei.architectures.config import Config, activation, read
from bei.architectures.family import Family
from bei.architectures.positions import Alibi
from bei.architectures.spec import TWICE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, bert_tensors, gate_last

_GATES = {"geglu": "gelu", "reglu": "relu", "swiglu": "silu"}
_CODE = "jina-bert-v2-qk-post-norm"


def _spec(config: Config) -> EncoderSpec:
    kind = read(config, "feed_forward_type")
    spec = replace(
        BERT.spec({**config, "position_embedding_type": "absolute"}),
        position_offset=None,
        relative_bias=Alibi(),
        gated=True,
        activation=activation(_GATES.get(kind, kind)),
        biases=("qkv", "out", "down"),
    )
    if not _norms_queries(config):
        return spec
    return replace(spec, qk_norm=True, whole_qk_norm=True, layers=(Layer(TWICE),) * len(spec.layers))


def _norms_queries(config: Config) -> bool:
    """Whether the model is of the code model's kind. Its config.json differs only by the repository of its code."""
    origins: Any = [config.get("_name_or_path"), *(config.get("auto_map") or {}).values()]
    return any(_CODE in str(origin) for origin in origins)


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    if not spec.qk_norm:
        return _base_tensors(config, spec)
    names = _code_tensors(config, spec)
    return {**names, **gate_last(spec, "encoder.layer.{}.mlp.up_gated_layer")}


_base_tensors = partial(
    bert_tensors,
    up=("mlp.gated_layers",),
    down=("mlp.wo",),
    ffn_end=("mlp.layernorm",),
)
_code_tensors = partial(
    bert_tensors,
    query_norm=("attention.self.layer_norm_q",),
    key_norm=("attention.self.layer_norm_k",),
    attention_again=("attention.output.LayerNorm",),
    attention_end=("layer_norm_1",),
    down=("mlp.down_layer",),
    ffn_end=("layer_norm_2",),
)

JINA_BERT = Family(_spec, _tensors, BERT.prefixes, BERT.ignored, BERT.heads, BERT.pooling)
