"""Scores by relative position, and by segment (arXiv:2006.03654, §3.1; transformers, DisentangledSelfAttention and
XLNetRelativeAttention)."""

import numpy as np

from bei.architectures.spec import Disentangled
from bei.engines.relative_vectors import bucket, sinusoids
from bei.engines.tensorrt.graph import Node
from bei.engines.tensorrt.parts import Parts


class PositionScores:
    """Of all layers. Queries come multiplied by the scale of attention, and keys do not."""

    def __init__(self, parts: Parts, of: Disentangled):
        self._parts, self._of = parts, of
        self._table, self._rows = self._vectors(), {sign: self._rows_of(sign) for sign in (-1, 1)}

    def added(self, i: int, scores: Node, q: Node, k: Node) -> Node:
        """scores: float32[B, heads, S, S], to which those of layer i are added; q, k: [B, heads, S, size]"""
        g, of = self._parts.graph, self._of
        if of.content_to_position:
            by_row = self._products(q, self._projected(i, "key"), self._bias_difference(i, "position"))
            scores = g.add(scores, g.pick(by_row, g.expanded(self._rows[-1], scores)))
        if of.position_to_content:
            vectors = g.multiply(self._projected(i, "query"), self._parts.spec.attention_scale)
            picked = g.pick(self._products(k, vectors, None), g.expanded(self._rows[1], scores))
            scores = g.add(scores, g.transpose(picked, (0, 1, 3, 2)))
        return g.add(scores, self._of_segments(i, q)) if of.segments else scores

    def _vectors(self) -> Node:
        """float32[2 * buckets, hidden], of each relative position"""
        parts, of = self._parts, self._of
        table = sinusoids(of, parts.spec.hidden_size) if of.sinusoids else parts.exact("relative_positions.weight")
        vectors = parts.graph.constant(table)
        return vectors if of.norm is None else parts.norm(of.norm, "relative_positions.norm", vectors)

    def _projected(self, i: int, kind: str) -> Node:
        """float32[1, heads, 2 * buckets, size]: the vectors as queries or keys of layer i."""
        g, parts, width = self._parts.graph, self._parts, self._parts.spec.query_size
        if self._of.own_projections:
            projected = parts.linear(f"layers.{i}.position_{kind}", self._table, bias=True)
        else:
            start = 0 if kind == "query" else width
            projected = parts.linear(f"layers.{i}.qkv", self._table, "qkv" in parts.spec.biases)
            projected = g.columns(projected, start, start + width)
        return self._by_head(projected)

    def _by_head(self, x: Node) -> Node:
        """[rows, heads * size] → [1, heads, rows, size]"""
        spec = self._parts.spec
        x = self._parts.graph.reshape(x, (1, -1, spec.heads, spec.head_size))
        return self._parts.graph.transpose(x, (0, 2, 1, 3))

    def _products(self, x: Node, vectors: Node, bias: Node | None) -> Node:
        """x: [B, heads, S, size]; vectors: float32[1, heads, rows, size]; bias: that of each head, float32[1, heads, 1,
        size], which is added to x → float32[B, heads, S, rows]"""
        g, dtype = self._parts.graph, self._parts.dtype
        products = g.cast(g.matmul(x, g.cast(vectors, dtype), transposed=True), "float32")
        return products if bias is None else g.add(products, g.matmul(bias, vectors, transposed=True))

    def _bias_difference(self, i: int, kind: str) -> Node | None:
        """float32[1, heads, 1, size]: the bias of queries of positions or segments without that of contents, which
        they come with; None if they have none of their own."""
        spec = self._parts.spec
        if not self._of.segments:
            return None
        content = self._parts.exact(f"layers.{i}.qkv.bias")[: spec.query_size]
        difference = (self._parts.exact(f"layers.{i}.{kind}_bias") - content) * np.float32(spec.attention_scale)
        return self._parts.graph.constant(difference.reshape(1, spec.heads, 1, spec.head_size))

    def _of_segments(self, i: int, q: Node) -> Node:
        """float32[B, heads, S, S]: of tokens of the same segment, and of two."""
        g, parts = self._parts.graph, self._parts
        segments = self._by_head(g.constant(parts.exact(f"layers.{i}.segments")))
        products = self._products(q, segments, self._bias_difference(i, "segment"))
        types = g.gather(parts.input("token_types"), parts.input("sources"))
        is_same = g.elementwise("EQUAL", g.reshape(types, (0, 1, -1, 1)), g.reshape(types, (0, 1, 1, -1)))
        return g.select(is_same, g.columns(products, 0, 1), g.columns(products, 1, 2))

    def _rows_of(self, sign: int) -> Node:
        """int32[S, S]: the row of the table for sign times (column - row)."""
        reach = self._parts.longest - 1
        return self._parts.by_distance(bucket(sign * np.arange(-reach, reach + 1), self._of).astype(np.int32))
