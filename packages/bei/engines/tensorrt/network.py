"""An EncoderSpec as a TensorRT network: tokens are packed everywhere; in attention, too, if TensorRT supports that.

Inputs (int32 except `pool_*`; T tokens, B sequences, S tokens of the longest one), as far as the spec needs them:

    input_ids, token_types, positions       [T]
    cu_seqlens                              [B + 1]   of packed attention
    slots                                   [T]       where each token stands among B * S padded ones
    sources                                 [B, S]    the token at each padded place; any token at an empty place
    steps                                   [S]       0, 1, 2, …
    attended                                [B]       the number of leading tokens that are attended to
    firsts, lasts                           [B]       tokens that are pooled alone
    pool_{mode}                             [B, S]    float32, the weight of each token in a pooled row (inputs.py)

Outputs: `pooled`, float32[B, row_size], and `tokens`, float32[T, token_size], unless it is as wide as the vocabulary.
Products run in the engine's precision, all else in float32, as in the torch engine.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bei.architectures.positions import RelativeBias, Rotary
from bei.architectures.spec import (
    Dense,
    Disentangled,
    EncoderSpec,
    HeadLayer,
    Int8Tanh,
    LayerNorm,
    Log1pRelu,
    Norm,
    Normalize,
)
from bei.checkpoint.tensors import Tensors
from bei.engines.query_growth import factors
from bei.engines.relative_bias import bias_by_distance
from bei.engines.rotary import cos_sin
from bei.engines.tensorrt.graph import Graph, Node
from bei.engines.tensorrt.products import Products
from bei.errors import SetupError

_MASKED = -1e30
_NORMALIZED = 1e-12  # torch.nn.functional.normalize's least norm


def check(spec: EncoderSpec, longest: int) -> None:
    """Raises SetupError that names a part of the spec that TensorRT's layers cannot express."""
    dynamic = [rotary.dynamic for rotary in spec.rotaries if rotary.dynamic]
    alone = {
        "a mixture of experts": any(layer.experts for layer in spec.layers),
        "a short convolution (LFM2)": spec.convolves,
        "attention with sinks": spec.sinks,
        "a layer with inputs and heads of its own (EmbeddingGemma 2)": bool(
            spec.layer_inputs or spec.value_norm or any(layer.heads for layer in spec.layers)
        ),
        "disentangled attention (DeBERTa, XLNet)": isinstance(spec.relative_bias, Disentangled),
        "a bottleneck (MobileBERT)": spec.trigrams or any(layer.bottleneck for layer in spec.layers),
        "a masked token that scales the others (token_dropout of ESM)": spec.dropped_token is not None,
        "a decoder that attends to its encoder (BART)": spec.decoder is not None,
        "a convolution beside the first layer (deberta-v2-xlarge)": spec.convolution is not None,
        "a rotary embedding that depends on a text's length (dynamic scaling)": any(
            longest > of.trained for of in dynamic
        ),
    }
    for part, is_there in alone.items():
        if is_there:
            raise SetupError(f"{part} needs the torch engine")


def gives_tokens(spec: EncoderSpec) -> bool:
    """Whether token rows are an output. SPLADE's are as wide as the vocabulary, and no route returns them."""
    return not spec.token_head or spec.token_size < spec.vocab_size


@dataclass(frozen=True)
class Attending:
    """The form of attention: `packed` is without padding; else `masked` says whether there is a mask."""

    packed: bool
    masked: bool

    @classmethod
    def of(cls, spec: EncoderSpec, graph: Graph, all_seen: bool, packed: bool) -> "Attending":
        masked = spec.relative_bias is not None or any(layer.window is not None for layer in spec.layers)
        packed = packed and graph.api.has_packed_attention and not masked and spec.soft_cap is None and all_seen
        return cls(packed, masked or spec.soft_cap is not None or not graph.api.has_lengths)


class Network:
    """Builds itself into `graph`. `longest`: tokens of the longest sequence; `attending`: one form for all layers."""

    def __init__(
        self, graph: Graph, spec: EncoderSpec, tensors: Tensors, products: Products, attending: Attending, longest: int
    ):
        self._g, self._spec, self._tensors, self._products = graph, spec, tensors, products
        self.attending, self._longest = attending, longest
        self._inputs: dict[str, Node] = {}
        self._masks: dict[tuple[int | None, str], Node] = {}
        self._cos_sin: dict[Rotary, tuple[Node, Node]] = {}

    def build(self) -> None:
        x = self._embeddings()
        for i in range(len(self._spec.layers)):
            x = self._layer(i, x)
        if self._spec.final_norm:
            x = self._norm(self._spec.norm, "final_norm", x)
        states = x
        for i, layer in enumerate(self._spec.token_head):
            states = self._head_layer(layer, f"token_head.{i}", states)
        rows = self._pooled(states)
        for i, layer in enumerate(self._spec.head):
            rows = self._head_layer(layer, f"head.{i}", rows)
        self._g.output("pooled", rows)
        if gives_tokens(self._spec):
            self._g.output("tokens", states)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    def _input(self, name: str) -> Node:
        if name not in self._inputs:
            dtype = "float32" if name.startswith("pool_") else "int32"
            self._inputs[name] = self._g.input(name, dtype, (-1, -1) if _is_padded(name) else (-1,))
        return self._inputs[name]

    def _exact(self, name: str) -> np.ndarray:
        return self._tensors[name].astype(np.float32)

    def _row(self, values: np.ndarray) -> Node:
        return self._g.constant(values[None].astype(np.float32))

    def _embeddings(self) -> Node:
        g, spec = self._g, self._spec
        x = g.cast(g.gather(g.constant(self._tensors["embeddings.token"]), self._input("input_ids")), "float32")
        if spec.embedding_scale != 1:
            x = g.multiply(x, spec.embedding_scale)
        if spec.position_offset is not None:
            table = self._exact("embeddings.position")[spec.position_offset :]
            x = g.add(x, g.gather(g.constant(table), self._input("positions")))
        if spec.token_types:
            types = g.constant(self._exact("embeddings.token_type"))
            x = g.add(x, g.gather(types, self._input("token_types")))
        if spec.embedding_norm:
            x = self._norm(spec.norm, "embeddings.norm", x)
        if spec.embedding_size != spec.hidden_size:
            x = self._linear("embeddings.project", x, bias=True)
        return x

    def _layer(self, i: int, x: Node) -> Node:
        g, spec, norms = self._g, self._spec, self._spec.layers[i].norms

        def norm(place: str, x: Node) -> Node:
            return self._norm(spec.norm, f"layers.{i}.{place}", x) if place in norms else x

        def linear(part: str, x: Node) -> Node:
            return self._linear(f"layers.{i}.{part}", x, part in spec.biases)

        def scaled(x: Node) -> Node:
            return x if spec.residual_scale == 1 else g.multiply(x, spec.residual_scale)

        beside = norm("ffn_in", x) if spec.parallel else None
        context = self._attention(i, linear("qkv", norm("attention_in", x)))
        added = scaled(norm("attention_out", linear("out", context)))
        if "attention_again" in norms:
            added = norm("attention_again", g.add(x, added))
        x = norm("attention_end", g.add(x, added))
        inner = linear("up", norm("ffn_in", x) if beside is None else beside)
        if spec.gated:
            half = spec.intermediate_size
            gate = self._activation(spec.activation, g.columns(inner, 0, half))
            inner = g.multiply(gate, g.columns(inner, half, 2 * half))
        else:
            inner = self._activation(spec.activation, inner)
        return norm("ffn_end", g.add(x, scaled(norm("ffn_out", linear("down", inner)))))

    def _attention(self, i: int, qkv: Node) -> Node:
        """float32[T, qkv_size] → float32[T, heads * size]"""
        g, spec, of = self._g, self._spec, self._spec.layers[i]
        ends = np.cumsum([0, spec.query_size, spec.key_size, spec.key_size])
        q, k, v = (g.columns(qkv, int(a), int(b)) for a, b in pairwise(ends))
        if spec.whole_qk_norm:
            q, k = self._qk_normed(i, q, k)
        q, k, v = (g.reshape(part, (-1, part.shape[-1] // spec.head_size, spec.head_size)) for part in (q, k, v))
        if spec.qk_norm and not spec.whole_qk_norm:
            q, k = self._qk_normed(i, q, k)
        if of.rotary is not None:
            q, k = (self._rotated(of.rotary, x) for x in (q, k))
        q = g.multiply(q, spec.attention_scale)
        if spec.query_growth:
            table = g.constant(factors(spec.query_growth, self._longest))
            q = g.multiply(q, g.reshape(g.gather(table, self._input("positions")), (-1, 1, 1)))
        q, k, v = (g.cast(x, self._products.dtype) for x in (q, k, v))
        if self.attending.packed:
            context = g.packed_attention(q, k, v, spec.causal, self._input("cu_seqlens"))
        else:
            context = self._padded_attention(q, k, v, of.window, spec.bias_name(i))
        return g.cast(g.reshape(context, (-1, spec.query_size)), "float32")

    def _qk_normed(self, i: int, *qk: Node) -> list[Node]:
        names = (f"layers.{i}.{name}" for name in self._spec.qk_norm_sizes)
        return [self._norm(self._spec.norm_of_heads, name, x) for name, x in zip(names, qk, strict=True)]

    def _padded_attention(self, q: Node, k: Node, v: Node, window: int | None, bias: str) -> Node:
        g, spec = self._g, self._spec
        q, k, v = (g.transpose(g.gather(x, self._input("sources")), (0, 2, 1, 3)) for x in (q, k, v))
        if spec.soft_cap is not None:
            context = self._capped(q, k, v, self._mask(window, bias), spec.soft_cap)
        elif self.attending.masked:
            context = g.attention(q, k, v, causal=False, mask=self._mask(window, bias))
        else:
            context = g.attention(q, k, v, spec.causal, lengths=self._input("attended"))
        context = g.reshape(g.transpose(context, (0, 2, 1, 3)), (-1, spec.heads, spec.head_size))
        return g.gather(context, self._input("slots"))

    def _capped(self, q: Node, k: Node, v: Node, mask: Node, cap: float) -> Node:
        """Attention with capped scores, which no fused attention supports."""
        g, spec = self._g, self._spec
        groups = spec.heads // spec.kv_heads
        if groups > 1:
            of_each = g.constant(np.repeat(np.arange(spec.kv_heads, dtype=np.int32), groups))
            k, v = (g.transpose(g.gather(g.transpose(x, (1, 0, 2, 3)), of_each), (1, 0, 2, 3)) for x in (k, v))
        scores = g.cast(g.matmul(q, k, transposed=True), "float32")
        scores = g.multiply(g.activation("TANH", g.multiply(scores, 1 / cap)), cap)
        hidden = g.constant(np.full((1, 1, 1, 1), _MASKED, np.float32))
        return g.matmul(g.cast(g.softmax(g.select(mask, scores, hidden)), self._products.dtype), v)

    def _mask(self, window: int | None, bias: str) -> Node:
        """bool[B, 1, S, S], true for a key that is attended to; if the spec has a bias, the sum added to scores. `bias`
        is the name of its table."""
        if (window, bias) not in self._masks:
            self._masks[window, bias] = self._made_mask(window, bias)
        return self._masks[window, bias]

    def _made_mask(self, window: int | None, bias_name: str) -> Node:
        g, spec = self._g, self._spec
        steps = self._input("steps")
        distance = g.elementwise("SUB", g.reshape(steps, (1, -1)), g.reshape(steps, (-1, 1)))  # of a key from a query
        seen = g.elementwise("LESS", steps, g.reshape(self._input("attended"), (-1, 1, 1, 1)))
        seen = g.elementwise("AND", seen, g.elementwise("LESS", distance, 1 if spec.causal else self._longest))
        if window is not None:
            seen = g.elementwise("AND", seen, g.elementwise("LESS", g.unary("ABS", distance), window + 1))
        if spec.relative_bias is None:
            return seen
        learned = self._exact(bias_name) if isinstance(spec.relative_bias, RelativeBias) else None
        table = bias_by_distance(spec, learned).T  # [2 * max_tokens - 1, heads]
        zero, reach = len(table) // 2, self._longest - 1
        bias = g.gather(g.constant(table[zero - reach : zero + reach + 1]), g.add(distance, reach))
        hidden = g.constant(np.full((1, 1, 1, 1), _MASKED, np.float32))
        return g.cast(g.select(seen, g.transpose(bias, (2, 0, 1)), hidden), self._products.dtype)

    def _rotated(self, rotary: Rotary, x: Node) -> Node:
        """x: float32[T, heads, size]"""
        g, pairs = self._g, len(rotary.frequencies)
        if rotary not in self._cos_sin:
            rows = g.gather(g.constant(cos_sin(rotary, self._longest)), self._input("positions"))
            rows = g.reshape(rows, (-1, 1, rotary.size))
            self._cos_sin[rotary] = g.columns(rows, 0, pairs), g.columns(rows, pairs, rotary.size)
        cos, sin = self._cos_sin[rotary]
        a, b = g.columns(x, 0, pairs), g.columns(x, pairs, rotary.size)
        rotated = [
            g.elementwise("SUB", g.multiply(a, cos), g.multiply(b, sin)),
            g.add(g.multiply(b, cos), g.multiply(a, sin)),
        ]
        size = self._spec.head_size
        return g.concatenate(rotated + ([g.columns(x, rotary.size, size)] if size > rotary.size else []))

    def _linear(self, name: str, x: Node, bias: bool) -> Node:
        """A product in the engine's precision, with float32 input and output."""
        y = self._g.cast(self._products(name, x), "float32")
        return self._g.add(y, self._row(self._exact(f"{name}.bias"))) if bias else y

    def _norm(self, norm: Norm, name: str, x: Node) -> Node:
        """Over the last axis of float32[..., size]."""
        g, axis = self._g, len(x.shape) - 1
        if norm.kind == "layer":
            x = g.elementwise("SUB", x, g.reduce("AVG", x, axis, keep=True))
        variance = g.reduce("AVG", g.multiply(x, x), axis, keep=True)
        x = g.elementwise("DIV", x, g.unary("SQRT", g.add(variance, norm.eps)))
        x = g.multiply(x, self._row(self._exact(f"{name}.weight") + np.float32(norm.offset)))
        return g.add(x, self._row(self._exact(f"{name}.bias"))) if norm.bias else x

    def _activation(self, activation: str, x: Node) -> Node:
        g = self._g
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

    def _head_layer(self, layer: HeadLayer, name: str, x: Node) -> Node:
        g = self._g
        match layer:
            case Dense():
                return self._dense(layer, name, x)
            case LayerNorm(_, eps, bias):
                return self._norm(Norm("layer", eps, bias), name, x)
            case Normalize():
                norm = g.unary("SQRT", g.reduce("SUM", g.multiply(x, x), 1, keep=True))
                return g.elementwise("DIV", x, g.elementwise("MAX", norm, _NORMALIZED))
            case Log1pRelu():
                return g.unary("LOG", g.add(g.activation("RELU", x), 1.0))
            case Int8Tanh():
                return g.unary("ROUND", g.multiply(g.activation("TANH", x), 127.0))

    def _dense(self, layer: Dense, name: str, x: Node) -> Node:
        g = self._g
        if name in self._spec.wide_layers:
            y = self._linear(name, x, layer.bias)
        else:
            y = self._product(f"{name}.weight", x)
            y = g.add(y, self._row(self._exact(f"{name}.bias"))) if layer.bias else y
        y = self._activation(layer.activation, y)
        if not layer.residual:
            return y
        return g.add(y, self._product(f"{name}.residual.weight", x) if layer.projects else x)

    def _product(self, name: str, x: Node) -> Node:
        """In float32."""
        return self._g.matmul(x, self._g.constant(self._exact(name)), transposed=True)

    def _pooled(self, states: Node) -> Node:
        """float32[T, width] → float32[B, width * modes]"""
        g, parts = self._g, []
        for mode in self._spec.pooling.modes:
            if mode in ("first", "last"):
                parts.append(g.gather(states, self._input(f"{mode}s")))
                continue
            padded = g.gather(states, self._input("sources"))  # [B, S, width]
            weights = g.reshape(self._input(f"pool_{mode}"), (0, 0, 1))
            if mode == "max":
                hidden = g.constant(np.full((1, 1, 1), _MASKED, np.float32))
                padded = g.select(g.elementwise("GREATER", weights, 0.0), padded, hidden)
            else:
                padded = g.multiply(padded, weights)
            parts.append(g.reduce("MAX" if mode == "max" else "SUM", padded, 1))
        return parts[0] if len(parts) == 1 else g.concatenate(parts)


def _is_padded(name: str) -> bool:
    return name == "sources" or name.startswith("pool_")
