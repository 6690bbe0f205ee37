"""The MLP of a layer in a network: one, or a mixture of experts."""

import numpy as np

from bei.architectures.spec import Activation, Clamp, Experts
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts

MOST_EXPERTS = 16
"""Every token goes through every expert, because TensorRT has no product whose rows choose their matrix."""


def mlp(parts: Parts, i: int, x: Node) -> Node:
    """Of layer i: float32[T, hidden] → float32[T, hidden]"""
    spec, experts = parts.spec, parts.spec.layers[i].experts
    if experts is not None:
        return _mixture(parts, experts, f"layers.{i}", x)
    biases = "up" in spec.biases, "down" in spec.biases
    return _mlp(parts, f"layers.{i}", x, spec.activation, spec.gated, biases)


def _mixture(parts: Parts, experts: Experts, layer: str, x: Node) -> Node:
    """The sum of all experts' outputs, each times its share, which is zero for those that are not chosen."""
    g = parts.graph
    shares, nothing = _shares(parts, experts, layer, x), g.constant(np.zeros((1, 1), np.float32))
    found = None
    for expert in range(experts.count):
        biases = experts.biases, experts.biases
        y = _mlp(parts, f"{layer}.experts.{expert}", x, experts.activation, experts.gated, biases)
        share = g.columns(shares, expert, expert + 1)
        y = g.select(g.elementwise("GREATER", share, 0.0), g.multiply(y, share), nothing)  # not 0 times infinity
        found = y if found is None else g.add(found, y)
    return g.add(found, parts.row(parts.exact(f"{layer}.experts.bias"))) if experts.output_bias else found


def _shares(parts: Parts, experts: Experts, layer: str, x: Node) -> Node:
    """float32[T, experts], zero for those that are not chosen"""
    g = parts.graph
    probabilities = g.softmax(parts.exact_linear(f"{layer}.router", x, experts.biases))
    shares, chosen = g.largest(probabilities, experts.chosen)
    if experts.normalized:
        shares = g.elementwise("DIV", shares, g.reduce("SUM", shares, 1, keep=True))
    spread = g.multiply(g.one_hot(chosen, experts.count), g.reshape(shares, (0, 0, 1)))  # [T, chosen, experts]
    return g.reduce("SUM", spread, 1)


def _mlp(
    parts: Parts, name: str, x: Node, activation: Activation | Clamp, gated: bool, biases: tuple[bool, bool]
) -> Node:
    g = parts.graph
    inner = parts.linear(f"{name}.up", x, biases[0])
    if gated:
        half = inner.shape[1] // 2
        inner = _gated(parts, g.columns(inner, 0, half), g.columns(inner, half, 2 * half), activation)
    elif not isinstance(activation, Clamp):
        inner = parts.activation(activation, inner)
    return parts.linear(f"{name}.down", inner, biases[1])


def _gated(parts: Parts, gate: Node, up: Node, activation: Activation | Clamp) -> Node:
    g = parts.graph
    if not isinstance(activation, Clamp):
        return g.multiply(parts.activation(activation, gate), up)
    gate = g.elementwise("MIN", gate, activation.limit)
    up = g.elementwise("MAX", g.elementwise("MIN", up, activation.limit), -activation.limit)
    swish = g.multiply(gate, g.activation("SIGMOID", g.multiply(gate, activation.alpha)))
    return g.multiply(swish, g.add(up, 1.0))
