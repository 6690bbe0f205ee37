"""RoFormer (arXiv:2104.09864): BERT with rotary embeddings, whose pairs are neighboring numbers of a head."""

from dataclasses import replace

from bei.architectures.bert import BERT
from bei.architectures.config import Config, refuse_others
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, bert_tensors, pairs
from bei.architectures.usual_heads import one_dense, two_dense


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, {"rotary_value": False})
    spec = BERT.spec({"max_position_embeddings": 1536, **config})
    layers = (Layer(rotary=rotary({}, spec.head_size)),) * len(spec.layers)
    embedding = config.get("embedding_size") or spec.hidden_size
    return replace(spec, layers=layers, position_offset=None, embedding_size=embedding)


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(bert_tensors(config, spec))
    starts = range(0, spec.query_size, spec.head_size)
    for i in range(len(spec.layers)):
        attention = f"encoder.layer.{i}.attention.self"
        for kind in ("weight", "bias"):
            query, key, value = (f"{attention}.{part}.{kind}" for part in ("query", "key", "value"))
            rotated = (part for name in (query, key) for start in starts for part in pairs(name, start, spec.head_size))
            names[f"layers.{i}.qkv.{kind}"] = (*rotated, value)
    return names


ROFORMER = Family(
    _spec,
    _tensors,
    ("", "roformer."),
    (*BERT.ignored, r"encoder\.embed_positions\.", r"sequence_summary\."),
    {
        **BERT.heads,
        "SequenceClassification": two_dense("classifier.dense", "gelu", "classifier.out_proj", "hidden_act"),
        "TokenClassification": one_dense,
    },
    FIRST,
)
