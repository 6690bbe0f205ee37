"""BigBird (arXiv:2007.14062): BERT for long texts. Its sparse attention is not served; as in transformers, a text that
is too short for its blocks is attended to as a whole."""

from dataclasses import replace

from bei.architectures.bert import BERT
from bei.architectures.config import Config
from bei.architectures.family import Family
from bei.architectures.spec import FIRST, EncoderSpec
from bei.architectures.tensor_names import TensorNames, TensorSlice, bert_tensors
from bei.architectures.usual_heads import two_dense
from bei.errors import SetupError, short


def _spec(config: Config) -> EncoderSpec:
    spec = BERT.spec({"hidden_act": "gelu_new", **config})
    return replace(
        spec,
        max_tokens=min(spec.max_tokens, _whole(config) or spec.max_tokens),
        embedding_scale=spec.hidden_size**0.5 if config.get("rescale_embeddings") else 1.0,
        biases=spec.biases if config.get("use_bias", True) else ("out", "up", "down"),
    )


def _whole(config: Config) -> int | None:
    """Up to how many tokens a text is attended to as a whole (transformers, BigBirdModel.forward); None for all."""
    kind = config.get("attention_type", "block_sparse")
    if kind == "original_full":
        return None
    if kind != "block_sparse":
        raise SetupError(f"config.json: attention_type {short(kind)} is not supported; supported: original_full")
    whole: int = (5 + 2 * config.get("num_random_blocks", 3)) * config.get("block_size", 64)
    return whole


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    positions = TensorSlice("embeddings.position_embeddings.weight", 0, spec.max_tokens)
    return {**bert_tensors(config, spec), "embeddings.position": (positions,)}


BIG_BIRD = Family(
    _spec,
    _tensors,
    ("", "bert."),
    BERT.ignored,
    {
        **BERT.heads,
        "SequenceClassification": two_dense("classifier.dense", "gelu_tanh", "classifier.out_proj", "hidden_act"),
    },
    FIRST,
)
