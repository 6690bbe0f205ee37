"""An EncoderSpec as a TensorRT network: tokens are packed everywhere; in attention, too, if TensorRT supports that.

Its inputs, as far as the spec needs them, are those of inputs.py; a part that is more than a few operations has a file.

Outputs: `pooled`, float32[B, row_size], and `tokens`, float32[T, token_size], unless it is as wide as the vocabulary.
Products run in the engine's precision, all else in float32, as in the torch engine.
"""

from bei.architectures.spec import EncoderSpec
from bei.checkpoint.tensors import Tensors
from bei.engines.tensorrt.attention import Attending, Attention, scored_heads
from bei.engines.tensorrt.bottleneck import bottleneck_layer
from bei.engines.tensorrt.convolutions import convolved, short_convolution
from bei.engines.tensorrt.cross_decoder import decoded
from bei.engines.tensorrt.graph import Graph, Node
from bei.engines.tensorrt.head import head_layer, pooled
from bei.engines.tensorrt.layer_inputs import gated, inputs_of_layers
from bei.engines.tensorrt.mlp import MOST_EXPERTS, mlp
from bei.engines.tensorrt.parts import Parts
from bei.engines.tensorrt.products import Products
from bei.errors import SetupError

_SCORES = 1 << 31  # of one text: 8 GiB in float32


def check(spec: EncoderSpec, longest: int) -> None:
    """Raises SetupError for a spec whose network would cost too much, with the part that does."""
    experts = max((layer.experts.count for layer in spec.layers if layer.experts), default=0)
    if experts > MOST_EXPERTS:
        raise SetupError(
            f"a mixture of {experts} experts needs the torch engine; tensorrt computes all of them for each token, and "
            f"takes up to {MOST_EXPERTS}"
        )
    if scored_heads(spec) * longest**2 > _SCORES:
        raise SetupError(
            f"attention with soft caps, sinks or relative positions over {longest} tokens needs the torch engine; "
            "tensorrt makes all scores of a text at once; or set a smaller max_seq_len"
        )


def gives_tokens(spec: EncoderSpec) -> bool:
    """Whether token rows are an output. SPLADE's are as wide as the vocabulary, and no route returns them."""
    return not spec.token_head or spec.token_size < spec.vocab_size


class Network:
    """Builds itself into `graph`. `longest`: tokens of the longest sequence; `attending`: one form for all layers;
    `all_seen`: whether all tokens of each sequence are attended to."""

    def __init__(
        self,
        graph: Graph,
        spec: EncoderSpec,
        tensors: Tensors,
        products: Products,
        attending: Attending,
        longest: int,
        all_seen: bool,
    ):
        self._g, self._spec, self._all_seen = graph, spec, all_seen
        self._parts = Parts(graph, spec, tensors, products, longest)
        self.attending, self._attention = attending, Attention(self._parts, attending)

    def build(self) -> None:
        spec, parts = self._spec, self._parts
        states = self._encoded()
        if spec.decoder is not None:
            states = decoded(parts, self._attention, spec.decoder, states)
        for i, layer in enumerate(spec.token_head):
            states = head_layer(parts, layer, f"token_head.{i}", states)
        rows = pooled(parts, states)
        for i, layer in enumerate(spec.head):
            rows = head_layer(parts, layer, f"head.{i}", rows)
        self._g.output("pooled", rows)
        if gives_tokens(spec):
            self._g.output("tokens", states)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._parts.inputs)

    def _encoded(self) -> Node:
        spec, parts = self._spec, self._parts
        x = embedded = self._embeddings()
        own = inputs_of_layers(parts, spec.layer_inputs.size, x) if spec.layer_inputs else None
        for i, layer in enumerate(spec.layers):
            if layer.bottleneck is not None:
                x = bottleneck_layer(parts, self._attention, i, layer.bottleneck, x)
            else:
                x = self._layer(i, x)
            if i == 0 and spec.convolution is not None:
                x = convolved(parts, spec.convolution, embedded, x)
            if own is not None:
                x = gated(parts, i, x, own[i])
        return parts.norm(spec.norm, "final_norm", x) if spec.final_norm else x

    def _embeddings(self) -> Node:
        g, spec, parts = self._g, self._spec, self._parts
        x = g.cast(g.gather(parts.stored("embeddings.token"), parts.input("input_ids")), "float32")
        if spec.embedding_scale != 1:
            x = g.multiply(x, spec.embedding_scale)
        if spec.dropped_token is not None:
            x = g.multiply(x, g.reshape(parts.input("kept"), (-1, 1)))
        if spec.trigrams:
            x = g.concatenate([parts.neighbor(x, distance) for distance in (1, 0, -1)])
            x = parts.linear("embeddings.project", x, bias=True)
        if spec.position_offset is not None:
            table = parts.exact("embeddings.position")[spec.position_offset :]
            x = g.add(x, g.gather(g.constant(table), parts.input("positions")))
        if spec.token_types:
            types = g.constant(parts.exact("embeddings.token_type"))
            x = g.add(x, g.gather(types, parts.input("token_types")))
        if spec.embedding_norm:
            x = parts.norm(spec.norm, "embeddings.norm", x)
        return parts.linear("embeddings.project", x, bias=True) if spec.projects and not spec.trigrams else x

    def _layer(self, i: int, x: Node) -> Node:
        g, spec, parts, layer = self._g, self._spec, self._parts, self._spec.layers[i]

        def norm(place: str, x: Node) -> Node:
            return parts.norm(spec.norm, f"layers.{i}.{place}", x) if place in layer.norms else x

        def linear(part: str, x: Node) -> Node:
            return parts.linear(f"layers.{i}.{part}", x, part in spec.biases)

        def scaled(x: Node) -> Node:
            return x if spec.residual_scale == 1 else g.multiply(x, spec.residual_scale)

        beside = norm("ffn_in", x) if spec.parallel else None
        mixed = linear("qkv", norm("attention_in", x))
        if layer.convolution is not None:
            mixed = short_convolution(parts, i, layer.convolution, mixed, self._all_seen)
        else:
            mixed = self._attention.of_product(i, mixed)
        added = scaled(norm("attention_out", linear("out", mixed)))
        if "attention_again" in layer.norms:
            added = norm("attention_again", g.add(x, added))
        x = norm("attention_end", g.add(x, added))
        added = mlp(parts, i, norm("ffn_in", x) if beside is None else beside)
        return norm("ffn_end", g.add(x, scaled(norm("ffn_out", added))))
