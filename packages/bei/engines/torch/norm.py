"""The spec's norms, in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import EncoderSpec, Norm
from bei.engines.torch.weights import Weights


class NormLayer:
    """A norm over the last axis."""

    def __init__(self, norm: Norm, weights: Weights, name: str):
        self._norm, self._weight = norm, weights.exact(f"{name}.weight") + norm.offset
        self._bias = weights.exact(f"{name}.bias") if norm.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._norm.kind == "affine":
            return x * self._weight if self._bias is None else torch.addcmul(self._bias, x, self._weight)
        if self._norm.kind == "rms":
            return F.rms_norm(x, self._weight.shape, self._weight, self._norm.eps)
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._norm.eps)


class WholeNorms:
    """The norms of a layer's queries and keys, each over all of its heads. x: float32[T, heads + kv_heads, size]"""

    def __init__(self, spec: EncoderSpec, weights: Weights, layer: int):
        self._heads = (spec.heads, spec.kv_heads)
        self._norms = [NormLayer(spec.norm_of_heads, weights, f"layers.{layer}.{part}") for part in spec.qk_norm_sizes]

    def __call__(self, x: Tensor) -> Tensor:
        parts = zip(self._norms, x.split(self._heads, 1), strict=True)
        return torch.cat([norm(part.flatten(1)).view_as(part) for norm, part in parts], 1)


class HeadNorms:
    """The same, of each head; the norm is over the last axis."""

    def __init__(self, spec: EncoderSpec, weights: Weights, layer: int):
        query, key = (weights.exact(f"layers.{layer}.{part}_norm.weight") for part in ("query", "key"))
        of_heads = torch.cat([query.expand(spec.heads, -1), key.expand(spec.kv_heads, -1)])
        self._norm, self._weight = spec.norm, of_heads + spec.norm.offset

    def __call__(self, x: Tensor) -> Tensor:
        norm = F.rms_norm if self._norm.kind == "rms" else F.layer_norm
        return norm(x, x.shape[-1:], eps=self._norm.eps) * self._weight
