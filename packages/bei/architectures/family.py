"""A family: how to read the config.json of its models, the names of their tensors, and the heads that they may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bei.architectures.config import Config, stated_pooling
from bei.architectures.spec import FIRST, EncoderSpec, HeadLayer, Pooling
from bei.architectures.tensor_names import TensorNames
from bei.errors import SetupError, short

HeadKind = Literal["SequenceClassification", "TokenClassification", "MaskedLM", "RewardModel", "Ranking"]
"""The heads that are supported: the part after `For` in the name of a transformers class."""

NamedHeadLayer = tuple[HeadLayer, tuple[str, ...]]
"""A layer, and the modules of the checkpoint that may hold its tensors, in the order in which they are tried. A tied
matrix is found under the other module's name."""


@dataclass(frozen=True)
class ScoreTokens:
    """The token ids of a language model whose logits are its score: the logit of `yes`, minus that of `no` if there is
    one."""

    yes: int
    no: int | None = None


@dataclass(frozen=True)
class TaskHead:
    """`token_layers` run on every token's state, `layers` on the pooled row. With `score_tokens` the only layer has one
    output: its weights are rows of the matrix over the vocabulary. The output of the last of `layers` is divided by
    `temperature`."""

    token_layers: tuple[NamedHeadLayer, ...] = ()
    pooling: Pooling = FIRST
    layers: tuple[NamedHeadLayer, ...] = ()
    score_tokens: ScoreTokens | None = None
    temperature: float = 1.0


def no_layers(config: Config, spec: EncoderSpec) -> tuple[NamedHeadLayer, ...]:
    """An encoder whose states are its embeddings."""
    return ()


@dataclass(frozen=True)
class Family:
    """`prefixes` are tried in order before the names of the encoder's tensors. `ignored` are regular expressions for
    names, after the prefix, of tensors of heads that are not served. Any other tensor left over is an error.

    `heads` makes each kind of head from config.json, its spec and the number of outputs (labels, or the vocabulary).
    `pooling` is the default for an embedder; in a family without a default the checkpoint has to state its own.
    `token_layers` makes the layers that an embedder has on every token, with their tensors among those of the encoder.
    """

    spec: Callable[[Config], EncoderSpec]
    tensors: Callable[[Config, EncoderSpec], TensorNames]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    heads: Mapping[HeadKind, Callable[[Config, EncoderSpec, int], TaskHead]]
    pooling: Pooling | None = None
    token_layers: Callable[[Config, EncoderSpec], tuple[NamedHeadLayer, ...]] = no_layers

    def head(self, kind: HeadKind, config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
        """A head of `heads`. Raises SetupError for one that differs from the `pooling` and the `temperature` that
        config.json states for its class."""
        head = self.heads[kind](config, spec, outputs)
        if kind in ("SequenceClassification", "RewardModel"):
            _check_stated(config, head)
        return head


def _check_stated(config: Config, head: TaskHead) -> None:
    pooling, temperature = config.get("pooling"), config.get("temperature")
    remedy = "remove the key if the model's class does not read it"
    if pooling is not None and stated_pooling({"pooling": pooling}) != head.pooling:
        raise SetupError(
            f"config.json: pooling {short(pooling)} is not supported with this head, which pools "
            f"{'+'.join(head.pooling.modes)}; {remedy}"
        )
    if temperature is not None and temperature != head.temperature:
        raise SetupError(f"config.json: temperature {short(temperature)} is not supported with this head; {remedy}")
