"""The heads that several families have."""

from collections.abc import Callable

from bei.architectures.config import Config, activation
from bei.architectures.family import TaskHead
from bei.architectures.spec import Activation, Dense, EncoderSpec, LayerNorm

EMBEDDINGS = "embeddings.word_embeddings"
"""The place of the matrix of a masked language model's last layer, if it is tied."""

HeadMaker = Callable[[Config, EncoderSpec, int], TaskHead]


def two_dense(first: str, default: Activation, second: str, key: str = "") -> HeadMaker:
    """A classifier on the first token: a Dense with an activation, which config.json may name under `key`, then one
    output per label."""

    def head(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
        hidden, stated = spec.hidden_size, config.get(key) if key else None
        layers = (
            (Dense(hidden, hidden, True, activation(stated) if stated else default), (first,)),
            (Dense(hidden, outputs, True, "identity"), (second,)),
        )
        return TaskHead(layers=layers)

    return head


def one_dense(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """A tagger: one output per label, for every token."""
    return TaskHead(((Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",)),))


def masked_lm(dense: str, norm: str, *decoder: str, activation: Activation | None = None) -> HeadMaker:
    """A masked language model's head: Dense, norm, and one output per word of the vocabulary. The default activation is
    that of the encoder's layers."""

    def head(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
        width = spec.embedding_size
        layers = (
            (Dense(spec.hidden_size, width, True, activation or spec.activation), (dense,)),
            (LayerNorm(width, spec.norm.eps), (norm,)),
            (Dense(width, outputs, True, "identity"), (*decoder, EMBEDDINGS)),
        )
        return TaskHead(layers)

    return head


BERT_MASKED_LM = masked_lm(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions",
)
