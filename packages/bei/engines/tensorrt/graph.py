"""Tensor operations over TensorRT's network API, in which each operation is a layer."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from bei.engines.tensorrt.api import API
from bei.errors import SetupError

Node: TypeAlias = Any
"""An ITensor: a tensor of the network. TensorRT's modules are untyped, and only found at run time."""

Shape = Sequence[int]
"""-1: inferred from the other sizes; 0: the input's size at that place."""


class Graph:
    """A network under construction. It keeps its constants alive, because TensorRT does not copy them."""

    def __init__(self, api: API, builder: Any) -> None:
        self.api, self.trt = api, api.trt
        self.network = api.network(builder)
        trt = api.trt
        self._types = {
            **{"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16, "int32": trt.int32},
            **{"float8_e4m3fn": trt.fp8, "bool": trt.bool},
        }
        self.constants: list[np.ndarray] = []

    def input(self, name: str, dtype: str, shape: Shape) -> Node:
        return self.network.add_input(name, self._types[dtype], tuple(shape))

    def output(self, name: str, x: Node) -> None:
        x = self._made(self.network.add_identity(x))  # one tensor may be two outputs
        x.name = name
        self.network.mark_output(x)

    def constant(self, array: np.ndarray) -> Node:
        """Of the array's own type; ml_dtypes for those that numpy lacks."""
        return self._constant(array, self._types[array.dtype.name], array.shape)

    def packed_fp4(self, nibbles: np.ndarray) -> Node:
        """uint8[rows, columns / 2], the first of two numbers in the low bits → fp4[rows, columns]."""
        return self._constant(nibbles, self.trt.fp4, (nibbles.shape[0], 2 * nibbles.shape[1]))

    def cast(self, x: Node, dtype: str) -> Node:
        wanted = self._types[dtype]
        return x if x.dtype == wanted else self._made(self.network.add_cast(x, wanted))

    def gather(self, table: Node, indices: Node) -> Node:
        """Rows of `table`; indices of any shape."""
        return self._made(self.network.add_gather(table, indices, 0))

    def pick(self, x: Node, indices: Node) -> Node:
        """x[..., indices] along the last axis; the other axes of both are alike."""
        layer = self.network.add_gather_v2(x, indices, self.trt.GatherMode.ELEMENT)
        layer.axis = len(x.shape) - 1
        return self._made(layer)

    def expanded(self, x: Node, like: Node) -> Node:
        """Repeated along its axes of 1, to the sizes of `like`."""
        missing = len(like.shape) - len(x.shape)
        x = self._in_front(x, missing)
        axes, sizes = len(x.shape), self._made(self.network.add_shape(like))
        layer = self.network.add_slice(x, [0] * axes, [1] * axes, [0 if size == 1 else 1 for size in x.shape])
        layer.set_input(2, sizes)
        return self._made(layer)

    def largest(self, x: Node, count: int) -> tuple[Node, Node]:
        """The `count` largest numbers of the last axis, and their places there."""
        layer = self.network.add_topk(x, self.trt.TopKOperation.MAX, count, 1 << (len(x.shape) - 1))
        return self._made(layer), layer.get_output(1)

    def one_hot(self, indices: Node, count: int) -> Node:
        """int32[...] → float32[..., count]"""
        values, depth = self.constant(np.array([0, 1], np.float32)), self.constant(np.array(count, np.int32))
        return self._made(self.network.add_one_hot(indices, values, depth, -1))

    def matmul(self, a: Node, b: Node, transposed: bool = False) -> Node:
        """a @ b, or a @ b.T of the last two axes."""
        none, transpose = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        return self._made(self.network.add_matrix_multiply(a, none, b, transpose if transposed else none))

    def reshape(self, x: Node, shape: Shape) -> Node:
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = tuple(shape)
        return self._made(layer)

    def transpose(self, x: Node, order: Shape) -> Node:
        layer = self.network.add_shuffle(x)
        layer.first_transpose = tuple(order)
        return self._made(layer)

    def columns(self, x: Node, start: int, stop: int) -> Node:
        """x[..., start:stop]; the other axes may be of any size."""
        last = np.arange(len(x.shape)) == len(x.shape) - 1
        sizes = self._made(self.network.add_shape(x))
        wanted = self.add(self.multiply(sizes, self._int64(~last)), self._int64(last * (stop - start)))
        first = self._int64(last * start)
        layer = self.network.add_slice(x, [0] * len(last), [1] * len(last), [1] * len(last))
        layer.set_input(1, first)
        layer.set_input(2, wanted)
        return self._made(layer)

    def concatenate(self, parts: list[Node]) -> Node:
        """Along the last axis."""
        layer = self.network.add_concatenation(parts)
        layer.axis = len(parts[0].shape) - 1
        return self._made(layer)

    def elementwise(self, operation: str, a: Node, b: Node) -> Node:
        """`operation`: a name of ElementWiseOperation. A number for `b` is a constant of a's type; sizes of 1 and axes
        that one lacks in front are broadcast."""
        if not hasattr(b, "shape"):
            b = self.cast(self.constant(np.array([b], np.int32 if a.dtype == self.trt.int32 else np.float32)), _name(a))
        a, b = self._aligned(a, b)
        return self._made(self.network.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, operation)))

    def add(self, a: Node, b: Node) -> Node:
        return self.elementwise("SUM", a, b)

    def multiply(self, a: Node, b: Node) -> Node:
        return self.elementwise("PROD", a, b)

    def unary(self, operation: str, x: Node) -> Node:
        return self._made(self.network.add_unary(x, getattr(self.trt.UnaryOperation, operation)))

    def activation(self, operation: str, x: Node) -> Node:
        return self._made(self.network.add_activation(x, getattr(self.trt.ActivationType, operation)))

    def reduce(self, operation: str, x: Node, axis: int, keep: bool = False) -> Node:
        return self._made(self.network.add_reduce(x, getattr(self.trt.ReduceOperation, operation), 1 << axis, keep))

    def softmax(self, x: Node) -> Node:
        """Over the last axis."""
        layer = self.network.add_softmax(x)
        layer.axes = 1 << (len(x.shape) - 1)
        return self._made(layer)

    def select(self, condition: Node, a: Node, b: Node) -> Node:
        condition, a, b = self._aligned(condition, a, b)
        return self._made(self.network.add_select(condition, a, b))

    def attention(self, q: Node, k: Node, v: Node, causal: bool, mask: Node = None, lengths: Node = None) -> Node:
        """[batch, heads, tokens, size]; `mask`: bool, true where a key is seen, or what is added to its score."""
        layer = self.api.attention(self.network, q, k, v, causal)
        layer.decomposable = True
        if mask is not None:
            layer.mask = mask
        if lengths is not None:
            layer.key_value_lengths = lengths
        return self._made(layer)

    def packed_attention(self, q: Node, k: Node, v: Node, causal: bool, cu_seqlens: Node) -> Node:
        """[tokens, heads, size]"""
        layer = self.api.attention(self.network, q, k, v, causal)
        layer.query_form = layer.key_value_form = self.trt.AttentionIOForm.PACKED_NHD
        layer.query_lengths = layer.key_value_lengths = cu_seqlens
        return self._made(layer)

    def quantize(self, x: Node, scale: Node) -> Node:
        return self._made(self.network.add_quantize(x, scale, self.trt.fp8))

    def quantize_blocks(self, x: Node, block: int, scale: Node) -> tuple[Node, Node]:
        """NVFP4: (fp4 numbers, fp8 scales of blocks of the last axis), `scale` that of the scales."""
        axis = len(x.shape) - 1
        layer = self.network.add_dynamic_quantize(x, axis, block, self.trt.fp4, self.trt.fp8)
        layer.set_input(1, scale)
        return layer.get_output(0), layer.get_output(1)

    def dequantize(self, x: Node, scale: Node, dtype: str, axis: int | None = None) -> Node:
        layer = self.network.add_dequantize(x, scale, self._types[dtype])
        if axis is not None:
            layer.axis = axis
        return self._made(layer)

    def _constant(self, array: np.ndarray, kind: Any, shape: Shape) -> Node:
        array = np.asarray(array, order="C")
        self.constants.append(array)
        count = int(np.prod(shape, dtype=np.int64))
        return self._made(self.network.add_constant(tuple(shape), self.trt.Weights(kind, array.ctypes.data, count)))

    def _int64(self, values: np.ndarray) -> Node:
        return self._constant(values.astype(np.int64), self.trt.int64, values.shape)

    def _aligned(self, *tensors: Node) -> list[Node]:
        """With as many axes each; new ones in front."""
        rank = max(len(x.shape) for x in tensors)
        return [self._in_front(x, rank - len(x.shape)) for x in tensors]

    def _in_front(self, x: Node, axes: int) -> Node:
        if not axes:
            return x
        return self._made(self.network.add_unsqueeze(x, self._int64(np.arange(axes))))

    def _made(self, layer: Any) -> Node:
        """The output of a layer. For a layer that it refuses, the API returns None and logs the reason."""
        if layer is None:
            raise SetupError(f"{self.api.name} refuses a layer of the network; its reason is in the log")
        return layer.get_output(0)


def _name(tensor: Node) -> str:
    """numpy's name of a TensorRT type."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32"}
    return names[tensor.dtype.name]
