"""A causal decoder over the same tokens, which attends to the encoder's states (transformers, BartDecoder)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Activation, CrossDecoder, EncoderSpec
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.linear import Product, read_linear
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.weights import Weights


class Decoder:
    """Encoder states to decoder states, float32[T, hidden] both."""

    def __init__(self, spec: EncoderSpec, of: CrossDecoder, weights: Weights):
        self._scale, self._start = spec.embedding_scale, of.start
        self._tokens = weights.stored("embeddings.token")
        self._positions = weights.exact("decoder.position")[spec.position_offset or 0 :]
        self._norm = NormLayer(spec.norm, weights, "decoder.norm")
        self._layers = [_Layer(spec, weights, f"decoder.layers.{i}") for i in range(of.layers)]

    def __call__(self, states: Tensor, inputs: Inputs) -> Tensor:
        before = F.pad(inputs["ids"][:-1], (1, 0), value=self._start)
        ids = torch.where(inputs["positions"] == 0, self._start, before)
        x = self._norm(self._tokens[ids].float() * self._scale + self._positions[inputs["positions"]])
        for layer in self._layers:
            x = layer(x, states, inputs)
        return x


class _Layer:
    def __init__(self, spec: EncoderSpec, weights: Weights, name: str):
        self._spec, self._dtype = spec, weights.dtype

        def read(part: str, activation: Activation = "identity") -> Product:
            return read_linear(weights, f"{name}.{part}", True, activation)

        self._qkv, self._out = read("qkv"), read("out")
        self._query, self._key_value, self._cross_out = read("query"), read("key_value"), read("cross_out")
        self._up, self._down = read("up", spec.activation), read("down")
        places = ("attention_end", "cross_end", "ffn_end")
        self._own_end, self._cross_end, self._end = (NormLayer(spec.norm, weights, f"{name}.{of}") for of in places)

    def __call__(self, x: Tensor, states: Tensor, inputs: Inputs) -> Tensor:
        q, k, v = self._heads(self._qkv(x.to(self._dtype))).chunk(3, 1)
        x = self._own_end(x + self._out(self._attended(q, k, v, inputs, causal=True)).float())
        q = self._heads(self._query(x.to(self._dtype)))
        k, v = self._heads(self._key_value(states.to(self._dtype))).chunk(2, 1)
        x = self._cross_end(x + self._cross_out(self._attended(q, k, v, inputs, causal=False)).float())
        return self._end(x + self._down(self._up(x.to(self._dtype))).float())

    def _heads(self, x: Tensor) -> Tensor:
        """[T, n * size] → [T, n, size]"""
        heads: Tensor = x.unflatten(-1, (-1, self._spec.head_size))
        return heads

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs, *, causal: bool) -> Tensor:
        """[T, heads, size] each → [T, heads * size]; every token of a text is attended to."""
        context = torch.empty_like(q)
        for group in inputs.layout.groups:
            shape = (group.count, group.length)
            of_q, of_k, of_v = (x[group.tokens].unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
            scale = self._spec.attention_scale
            found = F.scaled_dot_product_attention(of_q, of_k, of_v, is_causal=causal, scale=scale)
            context[group.tokens] = found.transpose(1, 2).flatten(0, 1)
        return context.flatten(1)
