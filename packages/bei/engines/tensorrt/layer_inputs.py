"""Every layer's own input from the embeddings in a network (architectures/layer_parts.py: LayerInputs)."""

from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts


def inputs_of_layers(parts: Parts, size: int, embeddings: Node) -> list[Node]:
    """float32[T, hidden] → float32[T, size] of each layer"""
    g, spec = parts.graph, parts.spec
    projected = g.multiply(parts.linear("layer_inputs.project", embeddings, bias=False), spec.hidden_size**-0.5)
    own = (g.columns(projected, i * size, (i + 1) * size) for i in range(len(spec.layers)))
    return [parts.norm(spec.norm, "layer_inputs.norm", x) for x in own]


def gated(parts: Parts, i: int, x: Node, own: Node) -> Node:
    """The end of layer i: float32[T, hidden] and its input, float32[T, size] → float32[T, hidden]"""
    g, spec = parts.graph, parts.spec
    gate = parts.activation(spec.activation, parts.linear(f"layers.{i}.input_gate", x, bias=False))
    added = parts.linear(f"layers.{i}.input_out", g.multiply(gate, own), bias=False)
    added = parts.norm(spec.norm, f"layers.{i}.input_norm", added)
    return g.multiply(g.add(x, added), g.constant(parts.exact(f"layers.{i}.scale")))
