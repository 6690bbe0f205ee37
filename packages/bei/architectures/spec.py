"""EncoderSpec: everything that an engine must know about a model, and nothing else.

A spec is data. Every engine interprets it; no engine knows a model's name. Its tensors have these names:

    embeddings.{token,position,token_type}        [vocab | positions | types, embedding]
    embeddings.norm.{weight,bias}                 [embedding]
    embeddings.project.{weight,bias}              [hidden, embedding], [hidden]   if the two sizes differ; of `trigrams`
                                                  [hidden, 3 * embedding]
    layers.{i}.sinks                              [heads]
    relative_bias, or layers.{i}.relative_bias    [buckets, heads]                of all layers, or of each
    relative_positions.weight                     [2 * buckets, hidden]           of DeBERTa, with a norm
    layers.{i}.position_{query,key}.{weight,bias} [heads * head_size, hidden]     of DeBERTa's `own_projections`
    layers.{i}.{position,segment}_bias            [heads * head_size]             of `segments`, as the next
    layers.{i}.segments                           [2, heads * head_size]
    decoder.{position,norm,layers.{i}.…}          of a CrossDecoder: shapes.py
    convolution.{weight,bias}                     [hidden, hidden / groups, taps] with a norm
    layers.{i}.qkv.{weight,bias}                  [(heads + 2 * kv_heads) * head_size, hidden]   query, key, value
    layers.{i}.{query_norm,key_norm}.weight       [head_size]                     with `whole_qk_norm` of all heads;
                                                                                  then also a bias, as other norms
    layers.{i}.out.{weight,bias}                  [hidden, heads * head_size]
    layers.{i}.up.{weight,bias}                   [intermediate, hidden]          gated: the gate's rows, then as many
    layers.{i}.down.{weight,bias}                 [hidden, intermediate]
    layers.{i}.taps.weight                        [hidden, 1, taps]               of a convolution, whose qkv is b, c, x
    layers.{i}.router.{weight,bias}               [experts, hidden]               of a mixture, in place of up and down
    layers.{i}.experts.{e}.{up,down}.{weight,bias}  as up and down, of expert e
    layers.{i}.experts.bias                       [hidden]
    layers.{i}.{enter,shared,leave}.{weight,bias} [size, hidden], leave [hidden, size]   of a Bottleneck, as the next
    layers.{i}.{query_key,value}.{weight,bias}    [2 * heads * head_size, size], [heads * head_size, hidden]
    layers.{i}.mlps.{j}.{up,down,norm}.{weight,bias}  as up and down, of `size` numbers
    layers.{i}.{enter,shared,out,leave}_norm.{weight,bias}
    layers.{i}.{input_gate,input_out}.weight      [size, hidden], [hidden, size]  of `layer_inputs`
    layers.{i}.{input_norm.weight,scale}          [hidden], [1]
    layer_inputs.{project,norm}.weight            [layers * size, hidden], [size]
    layers.{i}.{attention_in, ...}.{weight,bias}  [hidden]                        the norms of the layer
    final_norm.{weight,bias}                      [hidden]
    token_head.{i}.{weight,bias}                  the i-th layer of `token_head`
    head.{i}.{weight,bias}                        the i-th layer of `head`
    {token_head,head}.{i}.residual.weight         [outputs, inputs]               of a Dense that projects its input
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from bei.architectures.layer_parts import Bottleneck, Heads, LayerInputs, ShortConvolution
from bei.architectures.positions import Alibi, QueryGrowth, RelativeBias, Rotary
from bei.settings import PoolingName

Activation = Literal["identity", "gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid"]
PoolingMode = Literal[PoolingName, "sum"]
LinearName = Literal["qkv", "out", "up", "down"]
NormPlace = Literal["attention_in", "attention_out", "attention_again", "attention_end", "ffn_in", "ffn_out", "ffn_end"]
"""The place of a norm in a layer: on the input x, on the output f(x), or on the sum x + f(x) at its end. With `again`
attention's f(x) becomes norm(x + f(x)), to which x is then added once more (jina-embeddings-v2-base-code)."""

_SEGMENTS = 1 << 16  # more than any template has; they are only compared
LINEARS: tuple[LinearName, ...] = ("qkv", "out", "up", "down")
POST: tuple[NormPlace, ...] = ("attention_end", "ffn_end")
PRE: tuple[NormPlace, ...] = ("attention_in", "ffn_in")
TWICE: tuple[NormPlace, ...] = ("attention_again", *POST)
SANDWICH: tuple[NormPlace, ...] = ("attention_in", "attention_out", "ffn_in", "ffn_out")


@dataclass(frozen=True)
class Norm:
    """Layer norm; RMS norm (arXiv:1910.07467): x / √(mean(x²) + eps) * (weight + offset); or x * weight + bias alone
    (MobileBERT's NoNorm, arXiv:2004.02984, §3.3)."""

    kind: Literal["layer", "rms", "affine"]
    eps: float
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Clamp:
    """The gate of gpt-oss (arXiv:2508.10925, §2.2; transformers, GptOssExperts): g * sigmoid(alpha * g) * (u + 1). The
    gate g is at most `limit`, and the gated value u lies between -limit and `limit`."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Experts:
    """The MLP of a layer as a mixture of `count` MLPs (arXiv:1701.06538; arXiv:2101.03961). The router is a linear
    layer with a softmax over the experts. A token's state goes through the `chosen` experts of the largest
    probabilities, and the result is the sum of their outputs, each times its probability. If `normalized`, these are
    divided by their sum, which is a softmax over the logits of the chosen experts (Mixtral, arXiv:2401.04088, §2.1).

    `biases`: of the router and of each expert. `output_bias`: one vector that is added to the sum (MegaBlocks).
    """

    count: int
    chosen: int
    intermediate_size: int
    activation: Activation | Clamp
    gated: bool = True
    normalized: bool = False
    biases: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class Layer:
    """The properties that may differ between layers. `window` is the largest distance that attention spans. `experts`
    take the place of the MLP that the spec describes for all layers, `convolution` that of attention, and a
    `bottleneck` that of all parts. `heads`: of other sizes than the spec's."""

    norms: tuple[NormPlace, ...] = POST
    window: int | None = None
    rotary: Rotary | None = None
    experts: Experts | None = None
    convolution: ShortConvolution | None = None
    heads: Heads | None = None
    bottleneck: Bottleneck | None = None


@dataclass(frozen=True)
class Disentangled:
    """Scores between content and relative position (DeBERTa, arXiv:2006.03654, §3.1). Distances fall into 2 * `buckets`
    buckets. The vector of each bucket is projected by the query and key matrices of the layer, or with
    `own_projections` by matrices that each layer has for them. `sinusoids`: the vectors are sines and cosines of the
    distance, clamped to `max_distance` (Transformer-XL, arXiv:1901.02860, §3.3).

    With `segments` the score of a query and a key also has the query's product with one of two vectors: for tokens of
    one type, and of two (XLNet, arXiv:1906.08237, §2.5). Queries then have biases of their own for positions and for
    segments, in place of that of the layer."""

    buckets: int
    max_distance: int
    logarithmic: bool
    content_to_position: bool
    position_to_content: bool
    norm: Norm | None
    own_projections: bool = False
    sinusoids: bool = False
    segments: bool = False


@dataclass(frozen=True)
class Convolution:
    """Beside the first layer: its output becomes norm(output + activation(convolution of its input)). Each of `groups`
    parts of a state is convolved over `taps` tokens, around each token (DeBERTa v2's xlarge models)."""

    taps: int
    groups: int
    activation: Activation


@dataclass(frozen=True)
class CrossDecoder:
    """Layers that attend to the tokens before, and then to all states of the encoder (BART, arXiv:1910.13461). They
    read the text one place later, after the token `start`, and their states are the model's. Their sizes are the
    encoder's, and all their parts have a bias."""

    layers: int
    start: int


@dataclass(frozen=True)
class Pooling:
    """How token states become one vector: the vectors of `modes`, concatenated.

    If `include_prompt` is false, the tokens of a prompt (and special tokens before them) are left out of the pooling.
    """

    modes: tuple[PoolingMode, ...]
    include_prompt: bool = True


FIRST = Pooling(("first",))
LAST = Pooling(("last",))
MEAN = Pooling(("mean",))


@dataclass(frozen=True)
class Dense:
    """activation(x @ weight.T + bias). With `residual`, x is added; x @ residual.T where it has another width
    (sentence-transformers, base/modules/dense.py)."""

    inputs: int
    outputs: int
    bias: bool
    activation: Activation
    residual: bool = False

    @property
    def projects(self) -> bool:
        """Whether the residual has a matrix of its own."""
        return self.residual and self.inputs != self.outputs


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm of a vector."""

    size: int
    eps: float = 1e-5
    bias: bool = True


@dataclass(frozen=True)
class Normalize:
    """Division by the L2 norm. It is never the last layer after pooling: that is the choice of each request."""


@dataclass(frozen=True)
class Log1pRelu:
    """log(1 + relu(x)): how SPLADE saturates term weights (arXiv:2107.05720, eq. 1)."""


@dataclass(frozen=True)
class Int8Tanh:
    """round(127 tanh(x)): pplx-embed's numbers of eight bits (Int8TanhQuantizer of its st_quantize.py)."""


HeadLayer = Dense | LayerNorm | Normalize | Log1pRelu | Int8Tanh


@dataclass(frozen=True)
class EncoderSpec:
    """A transformer over packed tokens: BERT and its family, modern encoders, and causal decoders.

    `norm` is the kind of all norms, and `layers` say where they are. A key head and a value head are shared by
    heads / kv_heads query heads. Attention is softmax(cap(q kᵀ * attention_scale) + bias) v, where cap(x) is
    soft_cap * tanh(x / soft_cap); with `causal` a token attends to no later one. `qk_norm` norms the query and the
    key of each head, and with `whole_qk_norm` those of all heads as one vector; `value_norm` also norms each value,
    without weights. The MLP of a layer is down(activation(gate) * up) if `gated`, else down(activation(up)). `biases`
    names the linear parts that have one. If `parallel`, the MLP reads the input of the layer, as attention does
    (GPT-NeoX, arXiv:2204.06745, §2.1). `residual_scale` multiplies the outputs of attention and MLP (Granite; muP,
    arXiv:2203.03466).

    `sinks`: in each head the softmax of a row of scores has one number more, which is learned and belongs to no key, so
    that the shares of the keys sum up to less than one (arXiv:2309.17453; gpt-oss, arXiv:2508.10925, §2.3).

    `wide_range`: states exceed the range of float16, so engines compute in bfloat16 or float32 (T5; transformers,
    T5PreTrainedModel._keep_in_fp32_modules).

    `max_tokens` is the longest sequence that the positions allow. The first token's row in the table of learned
    positions is `position_offset`; None if there is no table. `token_types` is the size of the table of types; 0 if
    there is none.

    `trigrams`: a token's embedding is projected together with those of its neighbors, in the order next, this,
    previous, with zeros at the ends of a text; positions, types and the norm come after that, `hidden_size` wide
    (MobileBERT, arXiv:2004.02984, §3.2).

    The token `dropped_token` has an embedding of zeros, and those of the other tokens of its text are divided by the
    share of the others (ESM's `token_dropout`).

    `token_head` transforms the state of every token, `pooling` reduces a sequence to one vector, and `head` transforms
    that vector. A classifier is a head, a tagger is a token head, and SPLADE is both.
    """

    vocab_size: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    activation: Activation
    norm: Norm
    layers: tuple[Layer, ...]
    max_tokens: int
    attention_scale: float
    embedding_size: int
    causal: bool = False
    qk_norm: bool = False
    whole_qk_norm: bool = False
    value_norm: bool = False
    soft_cap: float | None = None
    query_growth: QueryGrowth | None = None
    relative_bias: RelativeBias | Alibi | Disentangled | None = None
    convolution: Convolution | None = None
    gated: bool = False
    biases: tuple[LinearName, ...] = LINEARS
    embedding_norm: bool = True
    embedding_scale: float = 1.0
    trigrams: bool = False
    layer_inputs: LayerInputs | None = None
    residual_scale: float = 1.0
    parallel: bool = False
    dropped_token: int | None = None
    decoder: CrossDecoder | None = None
    position_offset: int | None = None
    token_types: int = 0
    final_norm: bool = False
    sinks: bool = False
    wide_range: bool = False
    token_head: tuple[HeadLayer, ...] = ()
    pooling: Pooling = FIRST
    head: tuple[HeadLayer, ...] = ()

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads, and of the output of attention."""
        return self.heads * self.head_size

    @property
    def key_size(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_size

    @property
    def qkv_size(self) -> int:
        return self.query_size + 2 * self.key_size

    @property
    def qk_norm_sizes(self) -> dict[str, int]:
        """The sizes of the norms of queries and keys; empty if there are none."""
        sizes = (self.query_size, self.key_size) if self.whole_qk_norm else (self.head_size, self.head_size)
        return dict(zip(("query_norm", "key_norm"), sizes, strict=True)) if self.qk_norm else {}

    @property
    def norm_of_heads(self) -> Norm:
        """The kind of the norms of queries and keys: those of single heads have no bias."""
        return self.norm if self.whole_qk_norm else replace(self.norm, bias=False)

    @property
    def bias_names(self) -> tuple[str, ...]:
        """The name of each table of biases by distance: of every layer, or one that all share."""
        if not isinstance(self.relative_bias, (RelativeBias, Alibi)):
            return ()
        return tuple(dict.fromkeys(self.bias_name(i) for i in range(len(self.layers))))

    def bias_name(self, i: int) -> str:
        """The name of the table of biases by distance of layer i, if there is one."""
        own = isinstance(self.relative_bias, RelativeBias) and self.relative_bias.per_layer
        return f"layers.{i}.relative_bias" if own else "relative_bias"

    @property
    def sum_size(self) -> int:
        """Width of the sum of a token's embeddings, which is normed."""
        return self.hidden_size if self.trigrams else self.embedding_size

    @property
    def projects(self) -> bool:
        """Whether embeddings are projected to the layers' width."""
        return self.trigrams or self.embedding_size != self.hidden_size

    def of_layer(self, layer: Layer) -> "EncoderSpec":
        """With the sizes of the layer's own heads."""
        return replace(self, kv_heads=layer.heads.kv_heads, head_size=layer.heads.size) if layer.heads else self

    @property
    def type_count(self) -> int:
        """How many types of tokens differ to the model: those that have an embedding, or any as segments."""
        if isinstance(self.relative_bias, Disentangled) and self.relative_bias.segments:
            return _SEGMENTS
        return self.token_types

    @property
    def convolves(self) -> bool:
        """Whether any layer has a convolution in place of attention."""
        return any(layer.convolution for layer in self.layers)

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """The distinct rotary embeddings of the layers."""
        return tuple(dict.fromkeys(layer.rotary for layer in self.layers if layer.rotary))

    @cached_property
    def wide_layers(self) -> frozenset[str]:
        """Names of the head layers that run in the engine's precision: those on tokens that are at least as wide as the
        encoder. Narrower ones, and all layers after pooling, are small and run in float32: their precision is that of
        the answer."""
        wide = (isinstance(layer, Dense) and layer.outputs >= self.hidden_size for layer in self.token_head)
        return frozenset(f"token_head.{i}" for i, is_wide in enumerate(wide) if is_wide)

    @cached_property
    def token_size(self) -> int:
        """Width of a token's row, after `token_head`."""
        return _width(self.token_head, self.hidden_size)

    @cached_property
    def row_size(self) -> int:
        """Width of a pooled row: the number of an embedding's dimensions, unless a request asks for fewer."""
        return _width(self.head, self.token_size * len(self.pooling.modes))


def _width(layers: tuple[HeadLayer, ...], inputs: int) -> int:
    return next((layer.outputs for layer in reversed(layers) if isinstance(layer, Dense)), inputs)
