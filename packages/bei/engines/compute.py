"""The numbers that an engine computes with. An engine decides this once, from the settings, for all of its kernels."""

from dataclasses import dataclass
from typing import Literal

from bei.settings.gpus import Format, format_of

Dtype = Literal["fp32", "bf16", "fp16"]
Integers = Literal["int8", "int4"]
"""They are asked for as a `precision`, other quantizations as a `quantization_type`."""
Quantization = Literal["none", Integers, "fp8", "fp8_kv", "fp8_mlp_only", "fp4", "fp4_kv", "fp4_mlp_only"]
Operands = Literal[Dtype, Format, Integers]
"""The numbers that a product multiplies. int4 are those of a matrix alone: they become `dtype` again, which is
multiplied."""


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
        if self.quantization == "int8" or self.quantization == "int4":
            return self.quantization
        return format_of(self.quantization) or self.dtype

    def operands(self, product: str) -> Operands:
        """The operands of a large product."""
        return self.format if product in self.products else self.dtype
