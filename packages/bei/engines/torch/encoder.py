"""The forward pass of an EncoderSpec over packed tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Alibi, Disentangled, EncoderSpec, LinearName, NormPlace, RelativeBias, Rotary
from bei.engines.relative_bias import bias_by_distance
from bei.engines.rotary import turns
from bei.engines.torch import varlen
from bei.engines.torch.attention import BiasTable, Sight, packed_attention
from bei.engines.torch.disentangled import PositionScores
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.linear import ACTIVATIONS, Product, read_linear, spare_rows
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.varlen import Varlen
from bei.engines.torch.weights import Weights

Observe = Callable[[str, Tensor], None]
Attention = Callable[[Tensor, Tensor, Tensor, PositionScores | None], Tensor]
"""q, k, v, what adds scores by position → [T, heads * size]"""


class Encoder:
    """Token ids to token states [T, hidden]."""

    def __init__(self, spec: EncoderSpec, weights: Weights, observe: Observe | None = None):
        """`observe` is called with the name of each product of a layer, and its input."""
        self._spec = spec
        self._embeddings = _Embeddings(spec, weights)
        positions = None
        if isinstance(spec.relative_bias, Disentangled):
            positions = weights.exact("relative_positions.weight")
            if spec.relative_bias.norm:
                positions = NormLayer(spec.relative_bias.norm, weights, "relative_positions.norm")(positions)
        self._layers = [_Layer(spec, weights, i, positions, observe) for i in range(len(spec.layers))]
        self._final_norm = NormLayer(spec.norm, weights, "final_norm") if spec.final_norm else None
        self._turns = {rotary: _Turns(rotary, i, weights.device) for i, rotary in enumerate(spec.rotaries)}
        self._table = None
        if isinstance(spec.relative_bias, (RelativeBias, Alibi)):
            learned = isinstance(spec.relative_bias, RelativeBias)
            exact = weights.exact("relative_bias").cpu().numpy() if learned else None
            by_distance = torch.from_numpy(bias_by_distance(spec, exact))
            self._table = BiasTable(by_distance.to(weights.device, weights.dtype))
        attend = varlen.find() if Varlen.expresses(spec, weights.device, weights.dtype) else None
        self._varlen = None if attend is None else Varlen(spec, attend)

    def __call__(self, inputs: Inputs) -> Tensor:
        """float32 states in the order of the inputs."""
        x = self._embeddings(inputs)
        turned_by: dict[Rotary | None, Tensor | None] = {None: None}
        for rotary, of in self._turns.items():
            turned_by[rotary] = F.pad(of(inputs), (0, 0, 0, len(x) - len(inputs["ids"])))
        for layer, of in zip(self._layers, self._spec.layers, strict=True):
            x = layer(x, turned_by[of.rotary], self._attention(inputs, of.window))
        x = x[: len(inputs["ids"])]
        return self._final_norm(x) if self._final_norm else x

    def is_one_kernel(self, inputs: Inputs) -> bool:
        """Whether attention is, and so asks nothing of the host."""
        return self._varlen is not None and inputs.all_seen

    def _attention(self, inputs: Inputs, window: int | None) -> Attention:
        if self.is_one_kernel(inputs):
            return lambda q, k, v, _: self._varlen(q, k, v, inputs, window)
        sights = [
            Sight(group, inputs.attended[group.sequences], self._spec.causal, window, self._table)
            for group in inputs.layout.groups
        ]
        scale, soft_cap = self._spec.attention_scale, self._spec.soft_cap
        return lambda q, k, v, scores: packed_attention(q, k, v, sights, scale, soft_cap, scores)


class _Turns:
    """The rows by which a rotary turns each token: of a table on the device, or the inputs' own."""

    def __init__(self, rotary: Rotary, number: int, device: torch.device):
        self._rotary, self._name, self._device = rotary, f"turns.{number}", device
        self._table = torch.empty(0, rotary.size, device=device)

    def __call__(self, inputs: Inputs) -> Tensor:
        if self._rotary.dynamic:
            return inputs[self._name]
        if inputs.longest > len(self._table):
            rows = turns(self._rotary, 1 << (inputs.longest - 1).bit_length())
            self._table = torch.from_numpy(rows).to(self._device)
        return self._table[inputs["positions"]]


class _Embeddings:
    """float32 rows, on a CPU some spare ones at the end (`spare_rows`)."""

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
            self._project = read_linear(weights, "embeddings.project", bias=True)

    def __call__(self, inputs: Inputs) -> Tensor:
        x = self._tokens[inputs["ids"]].float() * self._scale
        if self._positions is not None:
            x += self._positions[inputs["positions"]]
        if self._types is not None:
            x += self._types[inputs["types"]]
        if self._norm is not None:
            x = self._norm(x)
        if x.device.type == "cpu":
            x = F.pad(x, (0, 0, 0, spare_rows(len(x))))
        return x if self._project is None else self._project(x.to(self._dtype)).float()


class _Layer:
    def __init__(self, spec: EncoderSpec, weights: Weights, i: int, positions: Tensor | None, observe: Observe | None):
        """positions: [2 * buckets, hidden], the vectors of relative positions."""
        self._spec, self._dtype = spec, weights.dtype

        def read(part: LinearName, activation: str = "identity") -> Product:
            name = f"layers.{i}.{part}"
            product = read_linear(weights, name, part in spec.biases, activation)
            return product if observe is None else lambda x: (observe(name, x), product(x))[1]

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

    def __call__(self, x: Tensor, turns: Tensor | None, attention: Attention) -> Tensor:
        context = self._attended(self._norm("attention_in", x).to(self._dtype), turns, attention)
        x = self._norm("attention_end", x.add_(self._norm("attention_out", self._out(context))))
        inner = self._up(self._norm("ffn_in", x).to(self._dtype))
        if self._spec.gated:
            gate, up = inner.chunk(2, -1)
            inner = ACTIVATIONS[self._spec.activation](gate) * up
        return self._norm("ffn_end", x.add_(self._norm("ffn_out", self._down(inner))))

    def _attended(self, x: Tensor, turns: Tensor | None, attention: Attention) -> Tensor:
        q, k, v = self._split(self._qkv(x))
        q, k = (self._turn(part, norm, turns) for part, norm in zip((q, k), self._head_norms, strict=True))
        return attention(q, k, v, self._position_scores)

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
