"""The spec's norms, in float32."""

import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Norm
from bei.engines.torch.weights import Weights


class NormLayer:
    """Over the last axis."""

    def __init__(self, norm: Norm, weights: Weights, name: str):
        self._norm, self._weight = norm, weights.exact(f"{name}.weight") + norm.offset
        self._bias = weights.exact(f"{name}.bias") if norm.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._norm.kind == "rms":
            return F.rms_norm(x, self._weight.shape, self._weight, self._norm.eps)
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._norm.eps)
