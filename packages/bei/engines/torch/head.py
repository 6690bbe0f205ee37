"""The layers after the encoder: the token head, pooling, and the head on the pooled row."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Dense, EncoderSpec, HeadLayer, Int8Tanh, LayerNorm, Log1pRelu, Norm, Normalize
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.layout import Layout
from bei.engines.torch.linear import ACTIVATIONS, read_linear, spare_rows
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.pooling import pool
from bei.engines.torch.weights import Weights

_CHUNK = {"cpu": 256, "cuda": 4096}  # tokens; SPLADE's rows are 30,522 numbers wide: 31 MB, and 500 MB


class TaskHead:
    """States and results are float32, and sorted as `layout`.

    `spec.wide_layers` run in the engine's precision, all others in float32. `streams`: tokens are pooled in chunks.
    """

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._pooling, self._token_size = spec.pooling, spec.token_size
        self._token_layers = [
            _head_layer(layer, weights, f"token_head.{i}", wide=f"token_head.{i}" in spec.wide_layers)
            for i, layer in enumerate(spec.token_head)
        ]
        self._layers = [_head_layer(layer, weights, f"head.{i}") for i, layer in enumerate(spec.head)]
        self.streams = (
            bool(spec.token_head) and spec.pooling.include_prompt and spec.pooling.modes in (("max",), ("sum",))
        )

    def tokens(self, states: Tensor) -> Tensor:
        """[T, hidden] → [T, spec.token_size]."""
        for layer in self._token_layers:
            states = layer(states)
        return states

    def marked(self, states: Tensor, places: Tensor) -> Tensor:
        """[T, hidden] → [M, spec.token_size]. places: int64[M]."""
        return self.tokens(F.pad(states[places], (0, 0, 0, spare_rows(len(places)))))[: len(places)]

    def rows(self, states: Tensor, inputs: Inputs) -> Tensor:
        """[T, hidden] → [B, spec.row_size]."""
        if self.streams:
            rows = self._streamed(states, inputs.layout)
        else:
            rows = pool(self.tokens(states), inputs, self._pooling)
        for layer in self._layers:
            rows = layer(rows)
        return rows

    def _streamed(self, states: Tensor, layout: Layout) -> Tensor:
        """Token head and pooling, one chunk of tokens at a time, so that [T, vocabulary] never exists as a whole."""
        (mode,) = self._pooling.modes
        join, start = (torch.maximum, -torch.inf) if mode == "max" else (torch.add, 0.0)
        rows = torch.full((len(layout.lengths), self._token_size), start, device=states.device)
        owners = torch.from_numpy(layout.owners)
        size = _CHUNK[states.device.type]
        for at in range(0, len(states), size):
            chunk = states[at : at + size]
            padded = F.pad(chunk, (0, 0, 0, spare_rows(len(chunk))))
            found, counts = owners[at : at + size].unique_consecutive(return_counts=True)
            partial = torch.segment_reduce(self.tokens(padded)[: len(chunk)], mode, lengths=counts.to(states.device))
            of = rows[int(found[0]) : int(found[-1]) + 1]
            of.copy_(join(of, partial))
        return rows


def _head_layer(layer: HeadLayer, weights: Weights, name: str, wide: bool = False) -> Callable[[Tensor], Tensor]:
    match layer:
        case Dense(residual=True):
            product = _dense(layer, weights, name, wide)
            if not layer.projects:
                return lambda rows: product(rows) + rows
            residual = weights.exact(f"{name}.residual.weight")
            return lambda rows: product(rows) + F.linear(rows, residual)
        case Dense():
            return _dense(layer, weights, name, wide)
        case LayerNorm(_, eps, bias):
            return NormLayer(Norm("layer", eps, bias), weights, name)
        case Normalize():
            return lambda rows: F.normalize(rows, dim=-1)
        case Log1pRelu():
            return lambda rows: rows.relu().log1p()
        case Int8Tanh():
            return lambda rows: (rows.tanh() * 127).round()


def _dense(layer: Dense, weights: Weights, name: str, wide: bool) -> Callable[[Tensor], Tensor]:
    """Without the residual."""
    if wide:
        linear = read_linear(weights, name, layer.bias, layer.activation)
        return lambda rows: linear(rows.to(weights.dtype)).float()
    weight, offset = weights.exact(f"{name}.weight"), weights.exact(f"{name}.bias") if layer.bias else None
    return lambda rows: ACTIVATIONS[layer.activation](F.linear(rows, weight, offset))
