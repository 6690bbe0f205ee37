"""EncoderSpec: everything an engine must know about a model, and nothing else.

A spec is data. Every engine interprets it; no engine knows a model's name. The tensors that go with it carry our names:

    embeddings.{token,position,token_type}             [vocab | positions | types, embedding]
    embeddings.norm.{weight,bias}                      [embedding]
    embeddings.project.{weight,bias}                   [hidden, embedding], [hidden]   where the two sizes differ
    relative_bias                                      [buckets, heads]
    layers.{i}.qkv.{weight,bias}                       [3 * hidden, hidden], [3 * hidden]   query, key, value
    layers.{i}.{out,up,down}.{weight,bias}             [outputs, inputs], [outputs]
    layers.{i}.{attention_norm,ffn_norm}.{weight,bias} [hidden]
    token_head.{i}.{weight,bias}                       the i-th stage of `token_head`
    head.{i}.{weight,bias}                             the i-th stage of `head`
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["identity", "gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid"]
PoolingMode = Literal["first", "last", "mean", "max", "mean_sqrt_len", "weighted_mean", "sum"]


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias per head and bucketed distance, added to attention scores (T5, arXiv:1910.10683, §2.1; MPNet)."""

    buckets: int
    max_distance: int


@dataclass(frozen=True)
class Pooling:
    """How token states become one vector: the vectors of `modes`, concatenated.

    `include_prompt` false leaves a prompt's tokens (and the specials before them) out of the pooling.
    """

    modes: tuple[PoolingMode, ...]
    include_prompt: bool = True


@dataclass(frozen=True)
class Dense:
    """activation(x @ weight.T + bias)."""

    inputs: int
    outputs: int
    bias: bool
    activation: Activation


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm of a vector."""

    size: int
    eps: float = 1e-5


@dataclass(frozen=True)
class Normalize:
    """L2 norm. After pooling it stands between two stages only: the last one is the request's own choice."""


@dataclass(frozen=True)
class Log1pRelu:
    """log(1 + relu(x)): how SPLADE saturates term weights (arXiv:2107.05720, eq. 1)."""


Stage = Dense | LayerNorm | Normalize | Log1pRelu


@dataclass(frozen=True)
class EncoderSpec:
    """A bidirectional encoder with post-norm layers: BERT and its family.

    `max_tokens` is the longest sequence the positions allow; the first token's row in the position table is
    `position_offset`. `token_types` is the size of that table, 0 where the model has none.

    `token_head` transforms every token's state, then `pooling` makes one vector of a sequence, and `head` transforms
    that: a classifier is a head, a tagger is a token head, SPLADE is both.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    activation: Activation
    norm_eps: float
    max_tokens: int
    position_offset: int
    token_types: int
    embedding_size: int
    relative_bias: RelativeBias | None = None
    token_head: tuple[Stage, ...] = ()
    pooling: Pooling = Pooling(("first",))
    head: tuple[Stage, ...] = ()

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def token_size(self) -> int:
        """Width of a token's row, after `token_head`."""
        return _width(self.token_head, self.hidden_size)

    @property
    def row_size(self) -> int:
        """Width of a pooled row: what an embedding request gets when it asks for all dimensions."""
        return _width(self.head, self.token_size * len(self.pooling.modes))


def _width(stages: tuple[Stage, ...], inputs: int) -> int:
    return next((stage.outputs for stage in reversed(stages) if isinstance(stage, Dense)), inputs)
