"""A layer with a bottleneck in a network (architectures/layer_parts.py: Bottleneck)."""

from bei.architectures.layer_parts import Bottleneck
from bei.engines.tensorrt.attention import Attention
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts


def bottleneck_layer(parts: Parts, attention: Attention, i: int, of: Bottleneck, x: Node) -> Node:
    """Layer i: float32[T, hidden] → float32[T, hidden]"""
    g, spec = parts.graph, parts.spec

    def linear(part: str, x: Node) -> Node:
        return parts.linear(f"layers.{i}.{part}", x, bias=True)

    def norm(part: str, x: Node) -> Node:
        return parts.norm(spec.norm, f"layers.{i}.{part}", x)

    def heads(x: Node) -> Node:
        return g.reshape(x, (-1, spec.heads, spec.head_size))

    y = norm("enter_norm", linear("enter", x))
    query_key = linear("query_key", norm("shared_norm", linear("shared", x)))
    q, k = (g.columns(query_key, start, start + spec.query_size) for start in (0, spec.query_size))
    context = attention.of_layer(i, heads(q), heads(k), heads(linear("value", x)))
    y = norm("out_norm", g.add(y, linear("out", context)))
    for j in range(of.mlps):
        added = linear(f"mlps.{j}.down", parts.activation(spec.activation, linear(f"mlps.{j}.up", y)))
        y = norm(f"mlps.{j}.norm", g.add(y, added))
    return norm("leave_norm", g.add(x, linear("leave", y)))
