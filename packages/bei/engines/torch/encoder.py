"""The forward pass of an EncoderSpec over packed tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Alibi, Disentangled, EncoderSpec, LinearName, NormPlace, RelativeBias, Rotary
from bei.engines.base import Batch
from bei.engines.relative_bias import bias_by_distance
from bei.engines.rotary import RotaryTable
from bei.engines.torch.attention import BiasTable, Sight, packed_attention
from bei.engines.torch.disentangled import PositionScores
from bei.engines.torch.layout import Layout
from bei.engines.torch.linear import ACTIVATIONS, Linear, PackedLinear, linear_class, spare_rows
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.weights import Weights


class Encoder:
    """Token ids to token states [T, hidden]."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._spec, self._dtype, self._device = spec, weights.dtype, weights.device
        self._embeddings = _Embeddings(spec, weights)
        positions = None
        if isinstance(spec.relative_bias, Disentangled):
            positions = weights.exact("relative_positions.weight")
            if spec.relative_bias.norm:
                positions = NormLayer(spec.relative_bias.norm, weights, "relative_positions.norm")(positions)
        self._layers = [_Layer(spec, weights, i, positions) for i in range(len(spec.layers))]
        self._final_norm = NormLayer(spec.norm, weights, "final_norm") if spec.final_norm else None
        self._rotaries = {rotary: RotaryTable(rotary) for rotary in spec.rotaries}
        self._table = None
        if isinstance(spec.relative_bias, (RelativeBias, Alibi)):
            learned = isinstance(spec.relative_bias, RelativeBias)
            exact = weights.exact("relative_bias").cpu().numpy() if learned else None
            by_distance = torch.from_numpy(bias_by_distance(spec, exact))
            self._table = BiasTable(by_distance.to(self._device, self._dtype))

    def __call__(self, batch: Batch, layout: Layout) -> Tensor:
        """float32 states in the order of `layout`."""
        x = self._embeddings(batch, layout)
        lengths = layout.lengths[layout.owners]
        spare = (0, 0, 0, len(x) - len(lengths))
        turns: dict[Rotary | None, Tensor | None] = {None: None}
        for rotary, table in self._rotaries.items():
            rows = torch.from_numpy(table.rows(layout.positions, lengths)).to(self._device)
            turns[rotary] = F.pad(rows, spare)
        attended = batch.attended[layout.sequences]
        for layer, of in zip(self._layers, self._spec.layers, strict=True):
            sights = [
                Sight(group, attended[group.sequences], self._spec.causal, of.window, self._table)
                for group in layout.groups
            ]
            x = layer(x, turns[of.rotary], sights)
        x = x[: len(batch.input_ids)]
        return self._final_norm(x) if self._final_norm else x


class _Embeddings:
    """float32 rows, some spare ones at the end (`spare_rows`)."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._scale, self._dtype = spec.embedding_scale, weights.dtype
        self._tokens = weights.stored("embeddings.token")
        self._positions = self._types = self._norm = self._project = None
        if spec.position_offset is not None:
            self._positions = weights.exact("embeddings.position")[spec.position_offset :]
        if spec.token_types:
            self._types = weights.exact("embeddings.token_type")
        if spec.embedding_norm:
            self._norm = NormLayer(spec.norm, weights, "embeddings.norm")
        if spec.embedding_size != spec.hidden_size:
            matrix, bias = weights.matrix("embeddings.project.weight"), weights.exact("embeddings.project.bias")
            self._project = linear_class(weights.device, weights.dtype)(matrix, bias)

    def __call__(self, batch: Batch, layout: Layout) -> Tensor:
        x = self._tokens[self._index(batch.input_ids[layout.tokens])].float() * self._scale
        if self._positions is not None:
            x += self._positions[self._index(layout.positions)]
        if self._types is not None:
            x += self._types[self._index(batch.token_types[layout.tokens])]
        if self._norm is not None:
            x = self._norm(x)
        x = F.pad(x, (0, 0, 0, spare_rows(len(x))))
        return x if self._project is None else self._project(x.to(self._dtype)).float()

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._tokens.device)


class _Layer:
    def __init__(self, spec: EncoderSpec, weights: Weights, i: int, positions: Tensor | None):
        """positions: [2 * buckets, hidden], the vectors of relative positions."""
        self._spec, self._dtype = spec, weights.dtype
        linear = linear_class(weights.device, weights.dtype)

        def read(part: LinearName, activation: str = "identity") -> Linear | PackedLinear:
            name = f"layers.{i}.{part}"
            bias = weights.exact(f"{name}.bias") if part in spec.biases else None
            return linear(weights.matrix(f"{name}.weight"), bias, activation)

        self._qkv, self._out, self._down = read("qkv"), read("out"), read("down")
        self._up = read("up", "identity" if spec.gated else spec.activation)
        self._norms = {place: NormLayer(spec.norm, weights, f"layers.{i}.{place}") for place in spec.layers[i].norms}
        self._head_norms = [
            NormLayer(spec.norm, weights, f"layers.{i}.{part}_norm") if spec.qk_norm else None
            for part in ("query", "key")
        ]
        self._position_scores = None
        if positions is not None:
            q, k, _ = self._split(self._qkv(positions.to(self._dtype)))
            self._position_scores = PositionScores(spec.relative_bias, q.transpose(0, 1), k.transpose(0, 1))

    def __call__(self, x: Tensor, turns: Tensor | None, sights: list[Sight]) -> Tensor:
        context = self._attention(self._norm("attention_in", x).to(self._dtype), turns, sights)
        x = self._norm("attention_end", x.add_(self._norm("attention_out", self._out(context))))
        inner = self._up(self._norm("ffn_in", x).to(self._dtype))
        if self._spec.gated:
            gate, up = inner.chunk(2, -1)
            inner = ACTIVATIONS[self._spec.activation](gate) * up
        return self._norm("ffn_end", x.add_(self._norm("ffn_out", self._down(inner))))

    def _attention(self, x: Tensor, turns: Tensor | None, sights: list[Sight]) -> Tensor:
        q, k, v = self._split(self._qkv(x))
        q, k = (self._turn(part, norm, turns) for part, norm in zip((q, k), self._head_norms, strict=True))
        spec = self._spec
        return packed_attention(q, k, v, sights, spec.attention_scale, spec.soft_cap, self._position_scores)

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """[T, qkv_size] → [T, heads, size], and keys and values [T, kv_heads, size]."""
        spec = self._spec
        parts = qkv.split((spec.query_size, spec.key_size, spec.key_size), -1)
        return tuple(part.unflatten(-1, (-1, spec.head_size)) for part in parts)

    def _turn(self, x: Tensor, norm: NormLayer | None, turns: Tensor | None) -> Tensor:
        """x: [T, heads, size], normed and rotated."""
        if norm is not None:
            x = norm(x.float())
        if turns is not None:
            cos, sin = turns[:, None].chunk(2, -1)
            pairs = cos.shape[-1]
            a, b, rest = x.float().split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
            x = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
        return x.to(self._dtype)

    def _norm(self, place: NormPlace, x: Tensor) -> Tensor:
        return self._norms[place](x.float()) if place in self._norms else x
