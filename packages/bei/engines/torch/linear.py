"""y = x @ weight.T + bias, with the activation fused into the product where the device can."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Activation
from bei.engines.torch.fused import fused
from bei.engines.torch.weights import Weights, float8_rows

Product = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# oneDNN's name and algorithm for those it fuses: torch/_inductor/fx_passes/mkldnn_fusion.py.
_FUSED: dict[Activation, tuple[str, str]] = {
    "identity": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
    "sigmoid": ("sigmoid", ""),
}
_TYPICAL_ROWS = 1024  # a hint for the layout of prepacked weights; any number of rows runs


def spare_rows(rows: int) -> int:
    """Rows to add, at most an eighth, so that products have few sizes: oneDNN keeps a megabyte for each size."""
    return -rows % (1 << max(0, rows.bit_length() - 4))


class Linear:
    """weight: [outputs, inputs]; bias: float32[outputs]; x: [rows, inputs] in the weight's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "identity"):
        self._weight, self._bias = weight.contiguous(), None if bias is None else bias.to(weight.dtype)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        return self._activation(F.linear(x, self._weight, self._bias))


class PackedLinear:
    """The same on a CPU by oneDNN, with the weight in the kernel's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "identity"):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
        self._bias, self._fused = bias, _FUSED[activation]

    def __call__(self, x: Tensor) -> Tensor:
        name, algorithm = self._fused
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], algorithm)
        return y


class Float8Linear:
    """The same in fp8: each row of the weight has a scale; those of the input's rows are computed at run time."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, activation: Activation, dtype: torch.dtype):
        """weight: float8_e4m3fn[outputs, inputs]; scales: float32[outputs]; dtype: of what comes in and out."""
        self._weight, self._scales = weight.t(), scales[None]
        self._bias, self._dtype, self._activation = bias, dtype, activation

    def __call__(self, x: Tensor) -> Tensor:
        numbers, scales = _float8_rows(x)
        y = torch._scaled_mm(
            *(numbers, self._weight, scales[:, None], self._scales), out_dtype=self._dtype, use_fast_accum=True
        )
        plain = self._bias is None and self._activation == "identity"
        return y if plain else _finished(y, self._bias, self._activation)


_float8_rows = fused(float8_rows)


@fused
def _finished(y: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    return ACTIVATIONS[activation](y if bias is None else y + bias).to(y.dtype)


def read_linear(weights: Weights, name: str, bias: bool, activation: Activation = "identity") -> Product:
    """The product of that name, in its precision."""
    offset = weights.exact(f"{name}.bias") if bias else None
    if weights.compute.operands(name) == "fp8":
        return Float8Linear(*weights.eight_bits(f"{name}.weight"), offset, activation, weights.dtype)
    return _linear_class(weights.device, weights.dtype)(weights.matrix(f"{name}.weight"), offset, activation)


def _linear_class(device: torch.device, dtype: torch.dtype) -> type[Linear] | type[PackedLinear]:
    """A PackedLinear, if oneDNN has a kernel of this precision for this processor."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return Linear
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Linear
    return PackedLinear
