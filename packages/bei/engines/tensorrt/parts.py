"""The vocabulary that all parts of a network share, over its graph, its weights and its inputs."""

from functools import cached_property

import numpy as np

from bei.architectures.spec import Activation, EncoderSpec, Norm
from bei.checkpoint.tensors import Tensors
from bei.engines.tensorrt.graph import Graph, Node
from bei.engines.tensorrt.inputs import declared
from bei.engines.tensorrt.products import Products

MASKED = -1e30
"""The score of a key that is not attended to, and the number of a token that is not pooled."""


class Parts:
    """`longest`: tokens of the longest sequence."""

    def __init__(self, graph: Graph, spec: EncoderSpec, tensors: Tensors, products: Products, longest: int):
        self.graph, self.spec, self.longest = graph, spec, longest
        self.dtype = products.dtype
        self.inputs: dict[str, Node] = {}
        self._tensors, self._products = tensors, products

    def input(self, name: str) -> Node:
        """Of inputs.py."""
        if name not in self.inputs:
            self.inputs[name] = self.graph.input(name, *declared(name, self.spec))
        return self.inputs[name]

    def exact(self, name: str) -> np.ndarray:
        """float32"""
        return self._tensors[name].astype(np.float32)

    def stored(self, name: str) -> Node:
        """In the checkpoint's own type."""
        return self.graph.constant(self._tensors[name])

    def row(self, values: np.ndarray) -> Node:
        """float32[n] → [1, n]"""
        return self.graph.constant(values[None].astype(np.float32))

    def linear(self, name: str, x: Node, bias: bool) -> Node:
        """A product in the engine's precision, with float32 input and output."""
        y = self.graph.cast(self._products(name, x), "float32")
        return self.graph.add(y, self.row(self.exact(f"{name}.bias"))) if bias else y

    def exact_linear(self, name: str, x: Node, bias: bool) -> Node:
        """The same in float32."""
        y = self.graph.matmul(x, self.graph.constant(self.exact(f"{name}.weight")), transposed=True)
        return self.graph.add(y, self.row(self.exact(f"{name}.bias"))) if bias else y

    def norm(self, norm: Norm, name: str, x: Node) -> Node:
        """Over the last axis of float32[..., size]."""
        x = self.graph.multiply(self._evened(norm, x), self.row(self.exact(f"{name}.weight") + np.float32(norm.offset)))
        return self.graph.add(x, self.row(self.exact(f"{name}.bias"))) if norm.bias else x

    def rms(self, eps: float, x: Node) -> Node:
        """x / √(mean(x²) + eps), over the last axis."""
        g, axis = self.graph, len(x.shape) - 1
        variance = g.reduce("AVG", g.multiply(x, x), axis, keep=True)
        return g.elementwise("DIV", x, g.unary("SQRT", g.add(variance, eps)))

    def _evened(self, norm: Norm, x: Node) -> Node:
        g = self.graph
        match norm.kind:
            case "affine":
                return x
            case "rms":
                return self.rms(norm.eps, x)
            case "layer":
                return self.rms(norm.eps, g.elementwise("SUB", x, g.reduce("AVG", x, len(x.shape) - 1, keep=True)))

    def activation(self, activation: Activation, x: Node) -> Node:
        g = self.graph
        match activation:
            case "identity":
                return x
            case "gelu":
                return g.activation("GELU_ERF", x)
            case "gelu_tanh":
                return g.activation("GELU_TANH", x)
            case "silu":
                return g.multiply(x, g.activation("SIGMOID", x))
            case _:
                return g.activation(activation.upper(), x)

    @cached_property
    def distance(self) -> Node:
        """int32[S, S]: of a key, by column, from a query, by row."""
        g, steps = self.graph, self.input("steps")
        return g.elementwise("SUB", g.reshape(steps, (1, -1)), g.reshape(steps, (-1, 1)))

    def by_distance(self, table: np.ndarray) -> Node:
        """[2 * n - 1, ...], of each distance from 1 - n to n - 1, n at least `longest` → [S, S, ...]"""
        zero, reach = len(table) // 2, self.longest - 1
        near = self.graph.constant(table[zero - reach : zero + reach + 1])
        return self.graph.gather(near, self.graph.add(self.distance, reach))

    def neighbor(self, x: Node, distance: int) -> Node:
        """float32[T, width] → of each token that many places after it in its text; zeros beyond its ends."""
        g = self.graph
        if distance == 0:
            return x
        at = self.input(f"near_{distance}")
        rows = g.gather(x, g.elementwise("MAX", at, 0))
        is_inside = g.reshape(g.elementwise("GREATER", at, -1), (-1, 1))
        return g.select(is_inside, rows, g.constant(np.zeros((1, 1), np.float32)))
