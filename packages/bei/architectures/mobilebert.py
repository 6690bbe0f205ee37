"""MobileBERT (arXiv:2004.02984): narrow layers between bottlenecks, with several MLPs, and embeddings of trigrams."""

from dataclasses import replace

from bei.architectures.bert import BERT
from bei.architectures.config import Config, attention_sizes, read, refuse_others
from bei.architectures.family import Family, TaskHead
from bei.architectures.layer_parts import Bottleneck
from bei.architectures.spec import FIRST, Dense, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames, affine, bert_tensors
from bei.architectures.usual_heads import one_dense, two_dense

_ONLY = {
    **{"use_bottleneck": True, "use_bottleneck_attention": False, "key_query_shared_bottleneck": True},
    **{"trigram_input": True, "normalization_type": "no_norm"},
}
_PARTS = {
    "enter": ("bottleneck.input.dense",),
    "enter_norm": ("bottleneck.input.LayerNorm",),
    "shared": ("bottleneck.attention.dense",),
    "shared_norm": ("bottleneck.attention.LayerNorm",),
    "query_key": ("attention.self.query", "attention.self.key"),
    "value": ("attention.self.value",),
    "out": ("attention.output.dense",),
    "out_norm": ("attention.output.LayerNorm",),
    "leave": ("output.bottleneck.dense",),
    "leave_norm": ("output.bottleneck.LayerNorm",),
}


def _spec(config: Config) -> EncoderSpec:
    size = config.get("intra_bottleneck_size", 128)
    refuse_others(config, {**_ONLY, "true_hidden_size": size})
    base = BERT.spec({"hidden_act": "relu", **config})
    layer = Layer((), bottleneck=Bottleneck(size, config.get("num_feedforward_networks", 4)))
    return replace(
        base,
        **attention_sizes(size, read(config, "num_attention_heads")),
        norm=Norm("affine", 0.0, bias=True),
        layers=(layer,) * len(base.layers),
        embedding_size=config.get("embedding_size", 128),
        trigrams=True,
        wide_range=True,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(bert_tensors(config, replace(spec, layers=())))
    names |= affine("embeddings.project", "embeddings.embedding_transformation")
    for i in range(len(spec.layers)):
        layer = f"encoder.layer.{i}"
        for ours, theirs in _PARTS.items():
            names |= affine(f"layers.{i}.{ours}", *(f"{layer}.{part}" for part in theirs))
        for j, mlp in enumerate(_mlps(spec, layer)):
            names |= affine(f"layers.{i}.mlps.{j}.up", f"{mlp}.intermediate.dense")
            names |= affine(f"layers.{i}.mlps.{j}.down", f"{mlp}.output.dense")
            names |= affine(f"layers.{i}.mlps.{j}.norm", f"{mlp}.output.LayerNorm")
    return names


def _mlps(spec: EncoderSpec, layer: str) -> list[str]:
    """The places of a layer's MLPs; the last one is the layer's own (transformers, MobileBertLayer)."""
    bottleneck = spec.layers[0].bottleneck
    return [*(f"{layer}.ffn.{j}" for j in range(bottleneck.mlps - 1 if bottleneck else 0)), layer]


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """Without `classifier_activation` the pooler is the first token's state as it is."""
    if config.get("classifier_activation", True):
        return two_dense("pooler.dense", "tanh", "classifier")(config, spec, outputs)
    return TaskHead(layers=((Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",)),))


MOBILEBERT = Family(
    _spec,
    _tensors,
    ("mobilebert.", ""),
    (r"pooler\.", r"cls\.", r"classifier\.", r"qa_outputs\."),
    {"SequenceClassification": _classifier, "TokenClassification": one_dense},
    FIRST,
)
