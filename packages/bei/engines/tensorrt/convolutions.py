"""Convolutions over the tokens of each text in a network."""

import numpy as np

from bei.architectures.layer_parts import ShortConvolution
from bei.architectures.spec import Convolution
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts


def short_convolution(parts: Parts, i: int, of: ShortConvolution, mixed: Node, all_seen: bool) -> Node:
    """Of layer i: float32[T, 3 * hidden] → float32[T, hidden] (architectures/layer_parts.py: ShortConvolution). Without
    `all_seen` a token that is not attended to is zero."""
    g, hidden = parts.graph, parts.spec.hidden_size
    if not all_seen:
        mixed = g.multiply(mixed, g.reshape(g.cast(parts.input("seen"), "float32"), (-1, 1)))
    b, c, x = (g.columns(mixed, part * hidden, (part + 1) * hidden) for part in range(3))
    product, taps = g.multiply(b, x), parts.exact(f"layers.{i}.taps.weight")[:, 0].T
    found = None
    for distance, tap in enumerate(taps, of.first):
        added = g.multiply(parts.neighbor(product, distance), parts.row(tap))
        found = added if found is None else g.add(found, added)
    return g.multiply(c, found)


def convolved(parts: Parts, of: Convolution, before: Node, after: Node) -> Node:
    """norm(after + activation(convolution of `before`)), float32[T, hidden] each (transformers, DebertaV2's
    ConvLayer)."""
    g, width = parts.graph, parts.spec.hidden_size // of.groups
    near = [parts.neighbor(before, distance - of.taps // 2) for distance in range(of.taps)]
    columns = g.concatenate([g.reshape(x, (-1, of.groups, width)) for x in near])  # [T, groups, taps * width]
    by_tap = parts.exact("convolution.weight").transpose(0, 2, 1)  # [hidden, taps, width]
    kernel = np.ascontiguousarray(by_tap).reshape(of.groups, width, of.taps * width)
    columns = g.cast(g.transpose(columns, (1, 0, 2)), parts.dtype)
    products = g.matmul(columns, g.cast(g.constant(kernel), parts.dtype), transposed=True)
    summed = g.reshape(g.transpose(g.cast(products, "float32"), (1, 0, 2)), (-1, parts.spec.hidden_size))
    summed = g.add(summed, parts.row(parts.exact("convolution.bias")))
    return parts.norm(parts.spec.norm, "convolution.norm", g.add(after, parts.activation(of.activation, summed)))
