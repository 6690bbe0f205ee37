"""The forward pass of an EncoderSpec over packed tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Activation, EncoderSpec
from bei.engines.base import Batch
from bei.engines.relative_bias import bias_by_distance
from bei.engines.torch.attention import BiasTable, packed_attention, unseen_bias
from bei.engines.torch.layout import Group, Layout
from bei.engines.torch.linear import Linear, PackedLinear, linear_class, spare_rows
from bei.engines.torch.weights import Weights


class Encoder:
    """Token ids to token states [T, hidden]; layers are post-norm: x = norm(x + f(x))."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._dtype = weights.dtype
        self._tokens = weights.exact("embeddings.token")
        self._positions = weights.exact("embeddings.position")[spec.position_offset :]
        self._types = weights.exact("embeddings.token_type") if spec.token_types else None
        self._norm = _Norm(spec, weights, "embeddings.norm")
        linear = linear_class(weights.device, weights.dtype)
        self._project = None
        if spec.embedding_size != spec.hidden_size:
            matrix, bias = weights.matrix("embeddings.project.weight"), weights.exact("embeddings.project.bias")
            self._project = linear(matrix, bias)
        self._layers = [_Layer(spec, weights, f"layers.{i}", linear) for i in range(spec.layers)]
        self._relative = None
        if spec.relative_bias:
            exact = weights.exact("relative_bias").cpu().numpy()
            by_distance = torch.from_numpy(bias_by_distance(spec.relative_bias, exact, spec.max_tokens))
            self._relative = BiasTable(by_distance.to(weights.device, weights.dtype))

    def __call__(self, batch: Batch, layout: Layout) -> Tensor:
        """float32 states in the order of `layout`."""
        x = self._tokens[self._index(batch.input_ids[layout.tokens])]
        x += self._positions[self._index(layout.positions)]
        if self._types is not None:
            x += self._types[self._index(batch.token_types[layout.tokens])]
        x = self._norm(x)
        x = F.pad(x, (0, 0, 0, spare_rows(len(x))))
        if self._project is not None:
            x = self._project(x.to(self._dtype)).float()
        attended = batch.attended[layout.sequences]
        biases = [self._bias(group, attended[group.sequences]) for group in layout.groups]
        for layer in self._layers:
            x = layer(x, layout, biases)
        return x[: len(batch.input_ids)]

    def _bias(self, group: Group, attended: np.ndarray) -> Tensor | None:
        """What is added to the group's attention scores, in the engine's precision."""
        relative = self._relative and self._relative.of(group.length)
        unseen = unseen_bias(attended, group.length)
        if unseen is None:
            return relative
        unseen = unseen.to(self._tokens.device, self._dtype)
        return unseen if relative is None else relative + unseen

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
