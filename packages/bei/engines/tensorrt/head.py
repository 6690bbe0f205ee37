"""The end of a network: the layers after the encoder, and pooling."""

import numpy as np

from bei.architectures.spec import Dense, HeadLayer, Int8Tanh, LayerNorm, Log1pRelu, Norm, Normalize
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import MASKED, Parts

_NORMALIZED = 1e-12  # torch.nn.functional.normalize's least norm


def head_layer(parts: Parts, layer: HeadLayer, name: str, x: Node) -> Node:
    """float32[rows, inputs] → float32[rows, outputs]"""
    g = parts.graph
    match layer:
        case Dense():
            return _dense(parts, layer, name, x)
        case LayerNorm(_, eps, bias):
            return parts.norm(Norm("layer", eps, bias), name, x)
        case Normalize():
            norm = g.unary("SQRT", g.reduce("SUM", g.multiply(x, x), 1, keep=True))
            return g.elementwise("DIV", x, g.elementwise("MAX", norm, _NORMALIZED))
        case Log1pRelu():
            return g.unary("LOG", g.add(g.activation("RELU", x), 1.0))
        case Int8Tanh():
            return g.unary("ROUND", g.multiply(g.activation("TANH", x), 127.0))


def _dense(parts: Parts, layer: Dense, name: str, x: Node) -> Node:
    linear = parts.linear if name in parts.spec.wide_layers else parts.exact_linear
    y = parts.activation(layer.activation, linear(name, x, layer.bias))
    if not layer.residual:
        return y
    return parts.graph.add(y, parts.exact_linear(f"{name}.residual", x, bias=False) if layer.projects else x)


def pooled(parts: Parts, states: Node) -> Node:
    """float32[T, width] → float32[B, width * modes]"""
    g, found = parts.graph, []
    for mode in parts.spec.pooling.modes:
        if mode in ("first", "last"):
            found.append(g.gather(states, parts.input(f"{mode}s")))
            continue
        padded = g.gather(states, parts.input("sources"))  # [B, S, width]
        weights = g.reshape(parts.input(f"pool_{mode}"), (0, 0, 1))
        if mode == "max":
            hidden = g.constant(np.full((1, 1, 1), MASKED, np.float32))
            padded = g.select(g.elementwise("GREATER", weights, 0.0), padded, hidden)
        else:
            padded = g.multiply(padded, weights)
        found.append(g.reduce("MAX" if mode == "max" else "SUM", padded, 1))
    return found[0] if len(found) == 1 else g.concatenate(found)
