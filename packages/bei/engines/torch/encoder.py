"""The forward pass of an EncoderSpec over packed tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.positions import RelativeBias, Rotary
from bei.architectures.shapes import position_projections
from bei.architectures.spec import Activation, Disentangled, EncoderSpec, NormPlace
from bei.engines.query_growth import factors
from bei.engines.relative_bias import bias_by_distance
from bei.engines.relative_vectors import sinusoids
from bei.engines.rotary import cos_sin
from bei.engines.torch.attention import AttentionMask, BiasTable, packed_attention
from bei.engines.torch.bottleneck import BottleneckLayer
from bei.engines.torch.convolution import ConvolvedLayer, neighbors
from bei.engines.torch.cross_decoder import Decoder
from bei.engines.torch.disentangled import PositionScores, Vectors
from bei.engines.torch.fused import fused
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.layer_inputs import InputGate, InputsOfLayers
from bei.engines.torch.layout import Group
from bei.engines.torch.linear import Product, read_linear, spare_rows
from bei.engines.torch.mlp import read_mlp
from bei.engines.torch.norm import HeadNorms, NormLayer, WholeNorms
from bei.engines.torch.short_convolution import Places, ShortConvolutionLayer
from bei.engines.torch.varlen import Varlen
from bei.engines.torch.weights import Weights

Observe = Callable[[str, Tensor], None]
Attention = Callable[[Tensor, Tensor, Tensor, PositionScores | None], Tensor]
"""q, k, v, what adds scores by position → [T, heads * size]"""


class Encoder:
    """Token ids to token states [T, hidden]."""

    def __init__(self, spec: EncoderSpec, weights: Weights, observe: Observe | None = None):
        """`observe` is called with the name of each product of a layer, and its input."""
        self._spec, self._dtype = spec, weights.dtype
        self._embeddings = _Embeddings(spec, weights)
        positions = None
        if isinstance(spec.relative_bias, Disentangled):
            positions = _position_vectors(spec, spec.relative_bias, weights)
            if spec.relative_bias.norm:
                positions = NormLayer(spec.relative_bias.norm, weights, "relative_positions.norm")(positions)
        self._layers = [
            BottleneckLayer(spec, layer.bottleneck, weights, i)
            if layer.bottleneck
            else _Layer(spec.of_layer(layer), weights, i, positions, observe)
            for i, layer in enumerate(spec.layers)
        ]
        self._inputs_of_layers, self._gates = None, []
        if spec.layer_inputs:
            self._inputs_of_layers = InputsOfLayers(spec, spec.layer_inputs.size, weights)
            self._gates = [InputGate(spec, weights, f"layers.{i}") for i in range(len(spec.layers))]
            self._next_norms = [_norm(spec, weights, i + 1, "attention_in") for i in range(len(spec.layers))]
        self._final_norm = NormLayer(spec.norm, weights, "final_norm") if spec.final_norm else None
        self._first_norm = _norm(spec, weights, 0, "attention_in")
        self._cos_sin = {rotary: _CosSin(rotary, i, weights) for i, rotary in enumerate(spec.rotaries)}
        self._tables = {name: _bias_table(spec, weights, name) for name in spec.bias_names}
        self._growth = None
        if spec.query_growth:
            growth = factors(spec.query_growth, weights.checkpoint.max_tokens)
            self._growth = torch.from_numpy(growth).to(weights.device)
        layers = range(len(spec.layers))
        self._sinks = [weights.exact(f"layers.{i}.sinks") if spec.sinks else None for i in layers]
        self._varlen = Varlen.of(spec, weights.device, weights.dtype)
        self._decoder = Decoder(spec, spec.decoder, weights) if spec.decoder else None
        self._convolved = ConvolvedLayer(spec, spec.convolution, weights) if spec.convolution else None

    def __call__(self, inputs: Inputs) -> Tensor:
        """float32 states in the order of the inputs."""
        x = self._embeddings(inputs)
        cos_sin_of: dict[Rotary | None, Tensor | None] = {None: None}
        for rotary, rows_of in self._cos_sin.items():
            cos_sin_of[rotary] = F.pad(rows_of(inputs), (0, 0, 0, len(x) - len(inputs["ids"])))
        places = Places(inputs, len(x)) if self._spec.convolves else None
        normed = _normed(x, self._first_norm, self._dtype)
        embedded, own = x, self._inputs_of_layers(x) if self._inputs_of_layers else None
        for i, (layer, of) in enumerate(zip(self._layers, self._spec.layers, strict=True)):
            attention = self._grown(inputs, self._attention(inputs, i, of.window))
            x, normed = layer(x, normed, cos_sin_of[of.rotary], attention, places)
            if i == 0 and self._convolved is not None:
                x = self._convolved(embedded, x, inputs)
                normed = x.to(self._dtype)
            if own is not None:
                x = self._gates[i](x, own[:, i])
                normed = _normed(x, self._next_norms[i], self._dtype)
        x = x[: len(inputs["ids"])]
        x = self._final_norm(x) if self._final_norm else x
        return x if self._decoder is None else self._decoder(x, inputs)

    def asks_the_host(self, inputs: Inputs) -> bool:
        """Whether the host takes part: in attention that is not one kernel, in a convolution, or in a mixture of
        experts, whose rows it counts."""
        one_kernel = self._varlen is not None and inputs.all_seen and self._convolved is None and self._decoder is None
        return not one_kernel or any(layer.experts for layer in self._spec.layers)

    def _types(self, inputs: Inputs, group: Group) -> Tensor | None:
        """int[count, length], if attention depends on them."""
        bias = self._spec.relative_bias
        if not isinstance(bias, Disentangled) or not bias.segments:
            return None
        return inputs["types"][group.tokens].view(group.count, group.length)

    def _grown(self, inputs: Inputs, attention: Attention) -> Attention:
        """Attention whose queries grow with their positions, if the spec says so."""
        if self._growth is None:
            return attention
        growth = self._growth[inputs["positions"]].to(self._dtype)[:, None, None]
        return lambda q, k, v, scores: attention(q * F.pad(growth, (0, 0, 0, 0, 0, len(q) - len(growth))), k, v, scores)

    def _attention(self, inputs: Inputs, i: int, window: int | None) -> Attention:
        varlen = self._varlen
        if varlen is not None and inputs.all_seen:
            return lambda q, k, v, _: varlen(q, k, v, inputs, window)
        table = self._tables.get(self._spec.bias_name(i))
        masks = [
            AttentionMask(
                group, inputs.attended[group.sequences], self._spec.causal, window, table, self._types(inputs, group)
            )
            for group in inputs.layout.groups
        ]
        scale, soft_cap, sinks = self._spec.attention_scale, self._spec.soft_cap, self._sinks[i]
        return lambda q, k, v, scores: packed_attention(q, k, v, masks, scale, soft_cap, scores, sinks)


def _position_vectors(spec: EncoderSpec, of: Disentangled, weights: Weights) -> Tensor:
    """float32[2 * buckets, hidden]"""
    if of.sinusoids:
        return torch.from_numpy(sinusoids(of, spec.hidden_size)).to(weights.device)
    return weights.exact("relative_positions.weight")


def _bias_table(spec: EncoderSpec, weights: Weights, name: str) -> BiasTable:
    learned = isinstance(spec.relative_bias, RelativeBias)
    exact = weights.exact(name).cpu().numpy() if learned else None
    return BiasTable(torch.from_numpy(bias_by_distance(spec, exact)).to(weights.device, weights.dtype))


class _CosSin:
    """cos | sin of each token for one rotary: from a table on the device, or from the inputs."""

    def __init__(self, rotary: Rotary, number: int, weights: Weights):
        self._rotary, self._name = rotary, f"cos_sin.{number}"
        if not rotary.dynamic:
            self._table = torch.from_numpy(cos_sin(rotary, weights.checkpoint.max_tokens)).to(weights.device)

    def __call__(self, inputs: Inputs) -> Tensor:
        return inputs[self._name] if self._rotary.dynamic else self._table[inputs["positions"]]


class _Embeddings:
    """float32 rows; on a CPU with spare rows at the end (`spare_rows`)."""

    def __init__(self, spec: EncoderSpec, weights: Weights):
        self._scale, self._dropped, self._dtype = spec.embedding_scale, spec.dropped_token, weights.dtype
        self._tokens = weights.stored("embeddings.token")
        self._positions = self._types = self._norm = self._project = None
        if spec.position_offset is not None:
            self._positions = weights.exact("embeddings.position")[spec.position_offset :]
        if spec.token_types:
            self._types = weights.exact("embeddings.token_type")
        if spec.embedding_norm:
            self._norm = NormLayer(spec.norm, weights, "embeddings.norm")
        self._trigrams = spec.trigrams
        if spec.projects:
            self._project = read_linear(weights, "embeddings.project", bias=True)

    def __call__(self, inputs: Inputs) -> Tensor:
        x = self._tokens[inputs["ids"]].float() * self._scale
        if self._dropped is not None:
            x *= _kept(inputs, self._dropped)[:, None]
        if self._trigrams:
            near = neighbors(x, inputs, 3).flip(1).flatten(1)
            x = self._projected(_with_spare_rows(near))[: len(x)]
        if self._positions is not None:
            x += self._positions[inputs["positions"]]
        if self._types is not None:
            x += self._types[inputs["types"]]
        if self._norm is not None:
            x = self._norm(x)
        x = _with_spare_rows(x)
        return x if self._trigrams else self._projected(x)

    def _projected(self, x: Tensor) -> Tensor:
        return x if self._project is None else self._project(x.to(self._dtype)).float()


def _with_spare_rows(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, spare_rows(len(x)))) if x.device.type == "cpu" else x


def _kept(inputs: Inputs, dropped: int) -> Tensor:
    """float32[T]: zero for a dropped token; for others the number that makes up for those of their sequence."""
    of = torch.searchsorted(
        inputs["cu_seqlens"][1:], torch.arange(len(inputs["ids"]), device=inputs["ids"].device), right=True
    )
    is_dropped = inputs["ids"] == dropped
    counts = torch.zeros(len(inputs["lengths"]), device=of.device).index_add_(0, of, is_dropped.float())
    return torch.where(is_dropped, 0.0, (inputs["lengths"] / (inputs["lengths"] - counts))[of])


class _Layer:
    def __init__(self, spec: EncoderSpec, weights: Weights, i: int, positions: Tensor | None, observe: Observe | None):
        """positions: [2 * buckets, hidden], the vectors of relative positions."""
        self._spec, self._dtype = spec, weights.dtype

        def read(part: str, bias: bool, activation: Activation = "identity") -> Product:
            name = f"layers.{i}.{part}"
            product = read_linear(weights, name, bias, activation)
            return product if observe is None else lambda x: (observe(name, x), product(x))[1]

        self._qkv, self._out = read("qkv", "qkv" in spec.biases), read("out", "out" in spec.biases)
        self._mlp = read_mlp(spec, weights, i, read)

        def norm(place: NormPlace) -> NormLayer | None:
            return _norm(spec, weights, i, place)

        before = None if spec.parallel else norm("ffn_in")
        self._beside = norm("ffn_in") if spec.parallel else None
        scale, next_in = spec.residual_scale, _norm(spec, weights, i + 1, "attention_in")
        self._after_attention = _Joint(
            norm("attention_out"), norm("attention_end"), before, norm("attention_again"), scale
        )
        self._after_ffn = _Joint(norm("ffn_out"), norm("ffn_end"), next_in, None, scale)
        convolution = spec.layers[i].convolution
        self._convolution = ShortConvolutionLayer(convolution, weights, f"layers.{i}") if convolution else None
        norms = WholeNorms if spec.whole_qk_norm else HeadNorms
        self._head_norms = norms(spec, weights, i) if spec.qk_norm and not convolution else None
        self._position_scores = None
        if positions is not None and isinstance(spec.relative_bias, Disentangled):
            self._position_scores = self._scores_by(positions, spec.relative_bias, weights, i)

    def __call__(
        self, x: Tensor, normed: Tensor, cos_sin: Tensor | None, attention: Attention, places: Places | None
    ) -> tuple[Tensor, Tensor]:
        """The residual, float32[T, hidden], and its normed form, which the products read → both for the next layer."""
        beside = _normed(x, self._beside, self._dtype) if self._spec.parallel else None
        if self._convolution is not None and places is not None:
            mixed = self._convolution(self._qkv(normed), places)
        else:
            mixed = self._attended(normed, cos_sin, attention)
        x, normed = _joined(x, self._out(mixed), self._after_attention, self._dtype)
        x, normed = _joined(x, self._mlp(normed if beside is None else beside), self._after_ffn, self._dtype)
        return x, normed

    def _attended(self, x: Tensor, cos_sin: Tensor | None, attention: Attention) -> Tensor:
        qk, v = self._split(self._qkv(x))
        if self._head_norms is not None or cos_sin is not None:
            qk = _rotated(qk, self._head_norms, cos_sin, self._dtype)
        if self._spec.value_norm:
            v = F.rms_norm(v.float(), v.shape[-1:], eps=self._spec.norm.eps).to(self._dtype)
        q, k = qk.split((self._spec.heads, self._spec.kv_heads), 1)
        return attention(q, k, v, self._position_scores)

    def _scores_by(self, positions: Tensor, of: Disentangled, weights: Weights, i: int) -> PositionScores:
        """The scores of the relative positions, whose vectors are projected once."""
        positions, heads = positions.to(self._dtype), (-1, self._spec.head_size)
        if of.own_projections:
            own = {part: read_linear(weights, f"layers.{i}.{part}", True) for part in position_projections(self._spec)}
            found = {part: project(positions).unflatten(-1, heads).transpose(0, 1) for part, project in own.items()}
            vectors = Vectors(found.get("position_query"), found.get("position_key"))
            return PositionScores(of, self._with_segments(vectors, weights, i) if of.segments else vectors)
        qk, _ = self._split(self._qkv(positions))
        q, k = qk.transpose(0, 1).split((self._spec.heads, self._spec.kv_heads))
        return PositionScores(of, Vectors(q if of.position_to_content else None, k if of.content_to_position else None))

    def _with_segments(self, vectors: Vectors, weights: Weights, i: int) -> Vectors:
        """Queries come with the bias for contents; the difference of the others from it is multiplied here."""
        heads = (self._spec.heads, self._spec.head_size)
        content = weights.exact(f"layers.{i}.qkv.bias")[: self._spec.query_size]
        of_position, of_segment = (
            (weights.exact(f"layers.{i}.{part}_bias") - content).view(*heads, 1) for part in ("position", "segment")
        )
        segments = weights.exact(f"layers.{i}.segments").unflatten(-1, heads).transpose(0, 1)
        keys = vectors.keys
        return replace(
            vectors,
            key_bias=None if keys is None else (keys.float() @ of_position).transpose(1, 2),
            segments=segments.to(self._dtype),
            segment_bias=(segments @ of_segment).transpose(1, 2),
        )

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """[T, qkv_size] → queries and keys [T, heads + kv_heads, size], values [T, kv_heads, size]."""
        spec = self._spec
        heads = qkv.unflatten(-1, (-1, spec.head_size))
        qk, v = heads.split((spec.heads + spec.kv_heads, spec.kv_heads), 1)
        return qk, v


@dataclass(frozen=True)
class _Joint:
    """The norms where the residual is added: of the addend, of the sum, of the input of the next product, and of the
    sum to which the residual is added again. The addend is multiplied by `scale`."""

    added: NormLayer | None
    end: NormLayer | None
    before: NormLayer | None
    again: NormLayer | None
    scale: float


def _norm(spec: EncoderSpec, weights: Weights, layer: int, place: NormPlace) -> NormLayer | None:
    """None if there is no such norm or no such layer."""
    has = layer < len(spec.layers) and place in spec.layers[layer].norms
    return NormLayer(spec.norm, weights, f"layers.{layer}.{place}") if has else None


def _read(x: Tensor, norm: NormLayer | None, dtype: torch.dtype) -> Tensor:
    """The residual as a product reads it."""
    return (x if norm is None else norm(x)).to(dtype)


_normed = fused(_read)


@fused
def _joined(x: Tensor, added: Tensor, joint: _Joint, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sum of residual and addend, float32[T, hidden], and the input of the next product."""
    added = added if joint.added is None else joint.added(added.float())
    added = added if joint.scale == 1 else added.float() * joint.scale
    x = x + (added if joint.again is None else joint.again(x + added))
    x = x if joint.end is None else joint.end(x)
    return x, _read(x, joint.before, dtype)


@fused
def _rotated(x: Tensor, norms: HeadNorms | WholeNorms | None, cos_sin: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[T, heads, size], normed, and rotated by the row of each token in `cos_sin`."""
    x = x.float() if norms is None else norms(x.float())
    if cos_sin is not None:
        cos, sin = cos_sin[:, None].chunk(2, -1)
        pairs = cos.shape[-1]
        a, b, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
        x = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    return x.to(dtype)
