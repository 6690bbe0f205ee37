"""A causal decoder over the same tokens in a network, which attends to the encoder's states (transformers,
BartDecoder)."""

import numpy as np

from bei.architectures.spec import CrossDecoder
from bei.engines.tensorrt.attention import Attention
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts


def decoded(parts: Parts, attention: Attention, of: CrossDecoder, states: Node) -> Node:
    """Encoder states to decoder states, float32[T, hidden] both."""
    g, spec = parts.graph, parts.spec
    before = parts.input("near_-1")
    ids = g.gather(parts.input("input_ids"), g.elementwise("MAX", before, 0))
    ids = g.select(g.elementwise("GREATER", before, -1), ids, g.constant(np.array([of.start], np.int32)))
    x = g.multiply(g.cast(g.gather(parts.stored("embeddings.token"), ids), "float32"), spec.embedding_scale)
    positions = g.constant(parts.exact("decoder.position")[spec.position_offset or 0 :])
    x = parts.norm(spec.norm, "decoder.norm", g.add(x, g.gather(positions, parts.input("positions"))))
    for i in range(of.layers):
        x = _layer(parts, attention, f"decoder.layers.{i}", x, states)
    return x


def _layer(parts: Parts, attention: Attention, name: str, x: Node, states: Node) -> Node:
    g, spec = parts.graph, parts.spec

    def linear(part: str, x: Node) -> Node:
        return parts.linear(f"{name}.{part}", x, bias=True)

    def joined(place: str, x: Node, added: Node) -> Node:
        return parts.norm(spec.norm, f"{name}.{place}", g.add(x, added))

    def heads(x: Node) -> list[Node]:
        """[T, n * heads * size] → n of [T, heads, size]"""
        starts = range(0, x.shape[1], spec.query_size)
        found = (g.columns(x, start, start + spec.query_size) for start in starts)
        return [g.reshape(part, (-1, spec.heads, spec.head_size)) for part in found]

    context = attention.of_decoder(*heads(linear("qkv", x)), causal=True)
    x = joined("attention_end", x, linear("out", context))
    context = attention.of_decoder(*heads(linear("query", x)), *heads(linear("key_value", states)), causal=False)
    x = joined("cross_end", x, linear("cross_out", context))
    return joined("ffn_end", x, linear("down", parts.activation(spec.activation, linear("up", x))))
