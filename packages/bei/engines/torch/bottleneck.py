"""A layer with a bottleneck: its residual is narrow inside, and wide between layers."""

from typing import Any

import torch
from torch import Tensor

from bei.architectures.layer_parts import Bottleneck
from bei.architectures.shapes import bottleneck_norms, bottleneck_sizes
from bei.architectures.spec import Activation, EncoderSpec
from bei.engines.torch.fused import fused
from bei.engines.torch.linear import read_linear
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.weights import Weights


class BottleneckLayer:
    """architectures/layer_parts.py: Bottleneck."""

    def __init__(self, spec: EncoderSpec, bottleneck: Bottleneck, weights: Weights, i: int):
        self._spec, self._mlps, self._dtype = spec, range(bottleneck.mlps), weights.dtype

        def activation(part: str) -> Activation:
            return spec.activation if part.endswith(".up") else "identity"

        self._products = {
            part: read_linear(weights, f"layers.{i}.{part}", True, activation(part))
            for part in bottleneck_sizes(spec, bottleneck)
        }
        self._norms = {
            name: NormLayer(spec.norm, weights, f"layers.{i}.{name}") for name in bottleneck_norms(spec, bottleneck)
        }

    def __call__(self, x: Tensor, normed: Tensor, cos_sin: Any, attention: Any, places: Any) -> tuple[Tensor, Tensor]:
        """As any layer (encoder.py), float32[T, hidden] and the same in the products' type."""
        of, norms, dtype = self._products, self._norms, self._dtype
        y, _ = _scaled(of["enter"](normed), norms["enter_norm"], dtype)
        _, shared = _scaled(of["shared"](normed), norms["shared_norm"], dtype)
        q, k = of["query_key"](shared).unflatten(-1, (2, self._spec.heads, -1)).unbind(1)
        v = of["value"](normed).unflatten(-1, (self._spec.kv_heads, -1))
        y, operand = _joined(y, of["out"](attention(q, k, v, None)), norms["out_norm"], dtype)
        for j in self._mlps:
            added = of[f"mlps.{j}.down"](of[f"mlps.{j}.up"](operand))
            y, operand = _joined(y, added, norms[f"mlps.{j}.norm"], dtype)
        left: tuple[Tensor, Tensor] = _joined(x, of["leave"](operand), norms["leave_norm"], dtype)
        return left


@fused
def _scaled(x: Tensor, norm: NormLayer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    normed = norm(x.float())
    return normed, normed.to(dtype)


@fused
def _joined(x: Tensor, added: Tensor, norm: NormLayer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    normed = norm(x + added)
    return normed, normed.to(dtype)
