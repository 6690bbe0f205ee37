"""Attention in a network: packed where TensorRT has it, else over padded texts, fused or with its scores made."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bei.architectures.positions import Alibi, RelativeBias, Rotary
from bei.architectures.spec import Disentangled, EncoderSpec
from bei.engines.query_growth import factors
from bei.engines.relative_bias import bias_by_distance
from bei.engines.rotary import cos_sin
from bei.engines.tensorrt.disentangled import PositionScores
from bei.engines.tensorrt.graph import Graph, Node
from bei.engines.tensorrt.parts import MASKED, Parts


def scored_heads(spec: EncoderSpec) -> int:
    """The heads whose scores are made, since no fused attention has them: caps, scores of relative positions and of
    segments, and sinks; 0 if there are none."""
    is_own = spec.soft_cap is not None or spec.sinks or isinstance(spec.relative_bias, Disentangled)
    return spec.heads if is_own else 0


@dataclass(frozen=True)
class Attending:
    """The form of attention: `packed` is without padding; else `masked` says whether there is a mask."""

    packed: bool
    masked: bool

    @classmethod
    def of(cls, spec: EncoderSpec, graph: Graph, all_seen: bool, packed: bool) -> "Attending":
        masked = spec.relative_bias is not None or any(layer.window is not None for layer in spec.layers)
        masked = masked or scored_heads(spec) > 0
        packed = packed and graph.api.has_packed_attention and not masked and all_seen
        return cls(packed, masked or not graph.api.has_lengths)


@dataclass(frozen=True)
class AttentionMask:
    """The keys that a query attends to. `bias`: the name of the table of biases by distance; empty if there is none."""

    causal: bool
    window: int | None = None
    bias: str = ""


class Attention:
    """Of all layers. Masks and rotations are made once."""

    def __init__(self, parts: Parts, attending: Attending):
        self._parts, self._attending = parts, attending
        self._seen: dict[AttentionMask, Node] = {}
        self._masks: dict[AttentionMask, Node] = {}
        self._cos_sin: dict[Rotary, tuple[Node, Node]] = {}
        bias = parts.spec.relative_bias
        self._positions = PositionScores(parts, bias) if isinstance(bias, Disentangled) else None

    def of_product(self, i: int, qkv: Node) -> Node:
        """Of layer i: float32[T, qkv_size] → float32[T, heads * size]"""
        g, layer = self._parts.graph, self._parts.spec.layers[i]
        spec = self._parts.spec.of_layer(layer)
        ends = np.cumsum([0, spec.query_size, spec.key_size, spec.key_size])
        q, k, v = (g.columns(qkv, int(a), int(b)) for a, b in pairwise(ends))
        if spec.whole_qk_norm:
            q, k = self._qk_normed(spec, i, q, k)
        q, k, v = (g.reshape(part, (-1, part.shape[-1] // spec.head_size, spec.head_size)) for part in (q, k, v))
        if spec.qk_norm and not spec.whole_qk_norm:
            q, k = self._qk_normed(spec, i, q, k)
        if spec.value_norm:
            v = self._parts.rms(spec.norm.eps, v)
        if layer.rotary is not None:
            q, k = (self._rotated(layer.rotary, x) for x in (q, k))
        return self.of_layer(i, q, k, v)

    def of_layer(self, i: int, q: Node, k: Node, v: Node) -> Node:
        """Of layer i: float32[T, heads, size] each → float32[T, heads * size]"""
        g, spec = self._parts.graph, self._parts.spec
        if spec.query_growth:
            table = g.constant(factors(spec.query_growth, self._parts.longest))
            q = g.multiply(q, g.reshape(g.gather(table, self._parts.input("positions")), (-1, 1, 1)))
        has_bias = isinstance(spec.relative_bias, (RelativeBias, Alibi))
        mask = AttentionMask(spec.causal, spec.layers[i].window, spec.bias_name(i) if has_bias else "")
        return self._attended(i if scored_heads(spec) else None, mask, q, k, v)

    def of_decoder(self, q: Node, k: Node, v: Node, *, causal: bool) -> Node:
        """The same, of a layer of a CrossDecoder."""
        return self._attended(None, AttentionMask(causal), q, k, v)

    def _attended(self, scored: int | None, mask: AttentionMask, q: Node, k: Node, v: Node) -> Node:
        """`scored`: the layer whose scores are made."""
        g, parts, width = self._parts.graph, self._parts, q.shape[1] * q.shape[2]
        q = g.multiply(q, parts.spec.attention_scale)
        q, k, v = (g.cast(x, parts.dtype) for x in (q, k, v))
        if self._attending.packed:
            context = g.packed_attention(q, k, v, mask.causal, parts.input("cu_seqlens"))
        else:
            q, k, v = (g.transpose(g.gather(x, parts.input("sources")), (0, 2, 1, 3)) for x in (q, k, v))
            if scored is not None:
                context = self._scored(scored, mask, q, k, v)
            elif self._attending.masked:
                context = g.attention(q, k, v, causal=False, mask=self._mask(mask))
            else:
                context = g.attention(q, k, v, mask.causal, lengths=parts.input("attended"))
            context = g.reshape(g.transpose(context, (0, 2, 1, 3)), (-1, width))
            context = g.gather(context, parts.input("slots"))
        return g.cast(g.reshape(context, (-1, width)), "float32")

    def _scored(self, i: int, mask: AttentionMask, q: Node, k: Node, v: Node) -> Node:
        """[B, heads, S, size] each, with scores of float32"""
        g, spec = self._parts.graph, self._parts.spec
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            of_each = g.constant(np.repeat(np.arange(k.shape[1], dtype=np.int32), groups))
            k, v = (g.transpose(g.gather(g.transpose(x, (1, 0, 2, 3)), of_each), (1, 0, 2, 3)) for x in (k, v))
        scores = g.cast(g.matmul(q, k, transposed=True), "float32")
        if self._positions is not None:
            scores = self._positions.added(i, scores, q, k)
        if spec.soft_cap is not None:
            scores = g.multiply(g.activation("TANH", g.multiply(scores, 1 / spec.soft_cap)), spec.soft_cap)
        if mask.bias:
            scores = g.add(scores, self._bias(mask.bias))
        hidden = g.constant(np.full((1, 1, 1, 1), MASKED, np.float32))
        scores = g.select(self._seen_keys(mask), scores, hidden)
        shares = self._with_sink(i, scores) if spec.sinks else g.softmax(scores)
        return g.matmul(g.cast(shares, self._parts.dtype), v)

    def _with_sink(self, i: int, scores: Node) -> Node:
        """The shares of the keys beside that of a sink, which has no value."""
        g = self._parts.graph
        sinks = g.constant(self._parts.exact(f"layers.{i}.sinks").reshape(1, -1, 1, 1))
        peak = g.elementwise("MAX", g.reduce("MAX", scores, 3, keep=True), sinks)
        powers = g.unary("EXP", g.elementwise("SUB", scores, peak))
        rest = g.unary("EXP", g.elementwise("SUB", sinks, peak))
        return g.elementwise("DIV", powers, g.add(g.reduce("SUM", powers, 3, keep=True), rest))

    def _mask(self, mask: AttentionMask) -> Node:
        """bool[B, 1, S, S], true for a key that is attended to; with a bias, what is added to scores, [B, heads, S, S]
        in the products' type."""
        if not mask.bias:
            return self._seen_keys(mask)
        if mask not in self._masks:
            g = self._parts.graph
            hidden = g.constant(np.full((1, 1, 1, 1), MASKED, np.float32))
            biases = g.select(self._seen_keys(mask), self._bias(mask.bias), hidden)
            self._masks[mask] = g.cast(biases, self._parts.dtype)
        return self._masks[mask]

    def _seen_keys(self, mask: AttentionMask) -> Node:
        """bool[B, 1, S, S]"""
        mask = replace(mask, bias="")
        if mask not in self._seen:
            self._seen[mask] = self._made_seen(mask)
        return self._seen[mask]

    def _made_seen(self, mask: AttentionMask) -> Node:
        g, parts = self._parts.graph, self._parts
        seen = g.elementwise("LESS", parts.input("steps"), g.reshape(parts.input("attended"), (-1, 1, 1, 1)))
        seen = g.elementwise("AND", seen, g.elementwise("LESS", parts.distance, 1 if mask.causal else parts.longest))
        if mask.window is not None:
            near = g.elementwise("LESS", g.unary("ABS", parts.distance), mask.window + 1)
            seen = g.elementwise("AND", seen, near)
        return seen

    def _bias(self, name: str) -> Node:
        """float32[heads, S, S]"""
        g, spec = self._parts.graph, self._parts.spec
        learned = self._parts.exact(name) if isinstance(spec.relative_bias, RelativeBias) else None
        return g.transpose(self._parts.by_distance(bias_by_distance(spec, learned).T), (2, 0, 1))

    def _qk_normed(self, spec: EncoderSpec, i: int, *qk: Node) -> list[Node]:
        names = (f"layers.{i}.{name}" for name in spec.qk_norm_sizes)
        return [self._parts.norm(spec.norm_of_heads, name, x) for name, x in zip(names, qk, strict=True)]

    def _rotated(self, rotary: Rotary, x: Node) -> Node:
        """x: float32[T, heads, size]"""
        g, pairs = self._parts.graph, len(rotary.frequencies)
        if rotary not in self._cos_sin:
            rows = g.reshape(self._cos_sin_rows(rotary), (-1, 1, rotary.size))
            self._cos_sin[rotary] = g.columns(rows, 0, pairs), g.columns(rows, pairs, rotary.size)
        cos, sin = self._cos_sin[rotary]
        a, b = g.columns(x, 0, pairs), g.columns(x, pairs, rotary.size)
        rotated = [
            g.elementwise("SUB", g.multiply(a, cos), g.multiply(b, sin)),
            g.add(g.multiply(b, cos), g.multiply(a, sin)),
        ]
        size = x.shape[2]
        return g.concatenate(rotated + ([g.columns(x, rotary.size, size)] if size > rotary.size else []))

    def _cos_sin_rows(self, rotary: Rotary) -> Node:
        """float32[T, size]"""
        g, parts = self._parts.graph, self._parts
        if rotary.dynamic and parts.longest > rotary.dynamic.trained:
            return parts.input(f"cos_sin_{parts.spec.rotaries.index(rotary)}")
        return g.gather(g.constant(cos_sin(rotary, parts.longest)), parts.input("positions"))
