"""The products of a network in the engine's precision: 32 or 16 bits, fp8, or fp4.

fp8: E4M3 with a scale for each row of the weights and one for all of a product's inputs, from calibration. fp4: NVFP4,
E2M1 with an E4M3 scale for each 16 numbers of a row and one for the whole tensor; inputs find the scales of their
blocks while they run. TensorRT joins each pair of quantize and dequantize with the product that reads it.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from bei.checkpoint.tensors import Tensors
from bei.engines import small_floats
from bei.engines.compute import Compute, Dtype
from bei.engines.tensorrt.graph import Graph, Node

NAMES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Products:
    """`dtype` is the type of the products' inputs and outputs. `peaks`: the largest absolute input of each quantized
    product."""

    def __init__(
        self,
        graph: Graph,
        tensors: Tensors,
        compute: Compute,
        peaks: Mapping[str, float] = MappingProxyType({}),
    ):
        self._g, self._tensors, self._compute, self._peaks = graph, tensors, compute, peaks
        self.dtype = NAMES[compute.dtype]

    def __call__(self, name: str, x: Node) -> Node:
        """x @ weight.T. x: float32[..., inputs] → dtype[..., outputs]"""
        x = self._g.cast(x, self.dtype)
        match self._compute.operands(name):
            case "fp8":
                return self._fp8(name, x)
            case "fp4":
                return self._fp4(name, x)
        weight = self._tensors[f"{name}.weight"].astype(self.dtype)
        return self._g.matmul(x, self._g.constant(weight), transposed=True)

    def _fp8(self, name: str, x: Node) -> Node:
        g = self._g
        scale = self._scale(small_floats.fp8_scale(self._peaks[name]))
        x = g.dequantize(g.quantize(x, scale), scale, self.dtype)
        weight, scales = small_floats.stored_fp8(self._tensors, f"{name}.weight")
        weight = g.dequantize(g.constant(weight), g.constant(scales), self.dtype, axis=0)
        return g.matmul(x, weight, transposed=True)

    def _fp4(self, name: str, x: Node) -> Node:
        g = self._g
        scale = self._scale(small_floats.fp4_scale(self._peaks[name]))
        numbers, scales = g.quantize_blocks(x, small_floats.BLOCK, scale)
        x = g.dequantize(numbers, g.dequantize(scales, scale, self.dtype), self.dtype)
        packed = small_floats.fp4(self._tensors[f"{name}.weight"])
        scales = g.dequantize(g.constant(packed.scales), self._scale(packed.scale), self.dtype)
        return g.matmul(x, g.dequantize(g.packed_fp4(packed.nibbles), scales, self.dtype), transposed=True)

    def _scale(self, value: float) -> Node:
        return self._g.constant(np.array(value, np.float32))
