"""ALBERT (arXiv:1909.11942): BERT whose layers share their weights in groups, with narrower embeddings."""

from collections.abc import Iterator
from dataclasses import replace

from bei.architectures.bert import BERT
from bei.architectures.config import Config, read
from bei.architectures.family import Family
from bei.architectures.spec import FIRST, EncoderSpec
from bei.architectures.tensor_names import TensorNames, affine, bert_tensors
from bei.architectures.usual_heads import masked_lm, one_dense, two_dense
from bei.errors import SetupError

_PARTS = {
    "qkv": ("attention.query", "attention.key", "attention.value"),
    "out": ("attention.dense",),
    "attention_end": ("attention.LayerNorm",),
    "up": ("ffn",),
    "down": ("ffn_output",),
    "ffn_end": ("full_layer_layer_norm",),
}


def _spec(config: Config) -> EncoderSpec:
    spec, embedding = BERT.spec({"hidden_act": "gelu_new", **config}), config.get("embedding_size", 128)
    if embedding == spec.hidden_size:
        raise SetupError("config.json: an embedding_size equal to hidden_size is not supported in ALBERT")
    return replace(spec, embedding_size=embedding, layers=spec.layers * config.get("inner_group_num", 1))


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = {
        **bert_tensors(config, replace(spec, layers=())),
        **affine("embeddings.project", "encoder.embedding_hidden_mapping_in"),
    }
    for i, layer in enumerate(_layers(config)):
        for ours, theirs in _PARTS.items():
            names |= affine(f"layers.{i}.{ours}", *(f"{layer}.{part}" for part in theirs))
    return names


def _layers(config: Config) -> Iterator[str]:
    """The place of each layer's tensors (transformers, AlbertTransformer)."""
    count, groups = read(config, "num_hidden_layers"), config.get("num_hidden_groups", 1)
    for i in range(count):
        group = int(i / (count / groups))
        for inner in range(config.get("inner_group_num", 1)):
            yield f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"


ALBERT = Family(
    _spec,
    _tensors,
    ("", "albert."),
    (r"pooler\.", r"predictions\.", r"sop_classifier\.", r"classifier\.", r"qa_outputs\."),
    heads={
        "SequenceClassification": two_dense("pooler", "tanh", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions"),
    },
    pooling=FIRST,
)
