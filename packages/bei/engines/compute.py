"""The numbers that an engine computes with. An engine decides this once, from the settings, for all of its kernels."""

from dataclasses import dataclass
from typing import Literal

from bei.settings.gpus import Format, format_of

Dtype = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["none", "int8", "fp8", "fp8_kv", "fp8_mlp_only", "fp4", "fp4_kv", "fp4_mlp_only"]
"""int8 is asked for as a `precision`, the others as a `quantization_type`."""
Operands = Literal[Dtype, Format, "int8"]
"""The numbers that a product multiplies."""


@dataclass(frozen=True, slots=True)
class Compute:
    """`products` (`layers.3.up`) are those that multiply numbers of the quantization. The other large ones multiply
    numbers of `dtype`, which is also the type of what lies between two products."""

    dtype: Dtype
    quantization: Quantization = "none"
    products: tuple[str, ...] = ()

    @property
    def format(self) -> Operands:
        """The operands of `products`; without a quantization, of all large ones."""
        return "int8" if self.quantization == "int8" else format_of(self.quantization) or self.dtype

    def operands(self, product: str) -> Operands:
        """The operands of a large product."""
        return self.format if product in self.products else self.dtype
