"""The forward pass of an EncoderSpec over packed tokens."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Activation, Dense, EncoderSpec, LayerNorm, Stage
from bei.engines.base import Batch
from bei.engines.torch.attention import BiasTable, packed_attention
from bei.engines.torch.layout import Layout
from bei.engines.torch.linear import ACTIVATIONS, Linear, PackedLinear, linear_class
from bei.engines.torch.pooling import pool
from bei.engines.torch.weights import Weights


def _spare_rows(tokens: int) -> int:
    """Rows to add, at most an eighth, so that products come in few sizes: oneDNN keeps a megabyte for each seen."""
    return -tokens % (1 << max(0, tokens.bit_length() - 4))


class Encoder:
    """Token ids to token states [T, hidden]; layers are post-norm: x = norm(x + f(x))."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._spec = spec
        self._tokens = weights.exact("embeddings.token")
        self._positions = weights.exact("embeddings.position")[spec.position_offset :]
        self._types = weights.exact("embeddings.token_type") if spec.token_types else None
        self._norm = _Norm(spec, weights, "embeddings.norm")
        linear = linear_class(weights.device, weights.dtype)
        self._layers = [_Layer(spec, weights, f"layers.{i}", linear) for i in range(spec.layers)]
        self._biases = None
        if spec.relative_bias:
            self._biases = BiasTable(spec.relative_bias, weights.matrix("relative_bias"), spec.max_tokens)

    def __call__(self, batch: Batch, layout: Layout) -> Tensor:
        """float32 states in the order of `layout`."""
        x = self._tokens[self._index(batch.input_ids[layout.tokens])]
        x += self._positions[self._index(layout.positions)]
        if self._types is not None:
            x += self._types[self._index(batch.token_types[layout.tokens])]
        x = self._norm(x)
        x = F.pad(x, (0, 0, 0, _spare_rows(len(x))))
        biases = [self._biases and self._biases.of(group.length) for group in layout.groups]
        for layer in self._layers:
            x = layer(x, layout, biases)
        return x[: len(batch.input_ids)]

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._tokens.device)


class _Layer:
    def __init__(self, spec: EncoderSpec, weights: Weights, name: str, linear: type[Linear] | type[PackedLinear]):
        def read(part: str, activation: Activation = "identity") -> Linear | PackedLinear:
            return linear(weights.matrix(f"{name}.{part}.weight"), weights.exact(f"{name}.{part}.bias"), activation)

        self._heads, self._dtype = spec.heads, weights.dtype
        self._qkv, self._out = read("qkv"), read("out")
        self._up, self._down = read("up", spec.activation), read("down")
        self._attention_norm = _Norm(spec, weights, f"{name}.attention_norm")
        self._ffn_norm = _Norm(spec, weights, f"{name}.ffn_norm")

    def __call__(self, x: Tensor, layout: Layout, biases: list[Tensor | None]) -> Tensor:
        context = packed_attention(self._qkv(x.to(self._dtype)), layout.groups, self._heads, biases)
        x = self._attention_norm(x.add_(self._out(context)))
        return self._ffn_norm(x.add_(self._down(self._up(x.to(self._dtype)))))


class _Norm:
    def __init__(self, spec: EncoderSpec, weights: Weights, name: str):
        self._weight, self._bias, self._eps = (
            weights.exact(f"{name}.weight"),
            weights.exact(f"{name}.bias"),
            spec.norm_eps,
        )

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class Head:
    """What follows pooling, in float32: a row is small, and its precision is the answer's."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._pooling = spec.pooling
        self._stages = [_stage(stage, weights, f"head.{i}") for i, stage in enumerate(spec.head)]

    def __call__(self, states: Tensor, batch: Batch, layout: Layout) -> Tensor:
        rows = pool(states, batch, layout, self._pooling)
        for stage in self._stages:
            rows = stage(rows)
        return rows


def _stage(stage: Stage, weights: Weights, name: str) -> Callable[[Tensor], Tensor]:
    match stage:
        case Dense(_, _, bias, activation):
            weight, offset = weights.exact(f"{name}.weight"), weights.exact(f"{name}.bias") if bias else None
            return lambda rows: ACTIVATIONS[activation](F.linear(rows, weight, offset))
        case LayerNorm(size, eps):
            weight, offset = weights.exact(f"{name}.weight"), weights.exact(f"{name}.bias")
            return lambda rows: F.layer_norm(rows, (size,), weight, offset, eps)
        case _:
            return lambda rows: F.normalize(rows, dim=-1)
