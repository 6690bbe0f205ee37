"""An EncoderSpec and the arrays of its plan, as the library reads them."""

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bei.architectures.layer_parts import Bottleneck
from bei.architectures.shapes import (
    DECODER_NORMS,
    bottleneck_norms,
    bottleneck_sizes,
    decoder_sizes,
    layer_input_sizes,
    linear_parts,
    linear_sizes,
)
from bei.architectures.spec import (
    Activation,
    Clamp,
    Dense,
    EncoderSpec,
    Experts,
    HeadLayer,
    Int8Tanh,
    Layer,
    LayerNorm,
    LinearName,
    Log1pRelu,
    Norm,
    Normalize,
)
from bei.engines.compute import Compute, Operands
from bei.engines.native import abi
from bei.engines.native.pack import hadamard, operands
from bei.engines.native.panels import operands_of
from bei.engines.native.positions import rows_by_distance

_MLP: tuple[LinearName, LinearName] = ("up", "down")
_POSITIONS = ("position_keys", "position_queries", "segments", "segment_bias")
_LINEAR = ("panels", "scales", "sums", "bias", "input_scales")
Arrays = Mapping[str, np.ndarray]


def model_of(spec: EncoderSpec, compute: Compute, arrays: Arrays) -> tuple[abi.Model, list[Any]]:
    """The model, and the objects that must live as long as it does."""
    read = _Reader(spec, arrays, dict(operands(spec, compute)))
    encoder = [read.layer(i) for i in range(len(spec.layers))]
    layers = abi.sequence(abi.Layer, [*encoder, *read.decoder_layers()])
    token_head, head = read.head_layers("token_head", spec.token_head), read.head_layers("head", spec.head)
    modes = abi.sequence(ctypes.c_int32, [abi.MODES[mode] for mode in spec.pooling.modes])
    sizes = abi.sequence(ctypes.c_int32, [rotary.size for rotary in spec.rotaries])
    tokens, position_rows = arrays["embeddings.token"], rows_by_distance(spec)
    model = abi.Model(
        precision=abi.PRECISIONS[compute.format],
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        heads=spec.heads,
        intermediate_size=spec.intermediate_size,
        max_tokens=spec.max_tokens,
        type_count=spec.token_types,
        embedding_size=spec.embedding_size,
        gated=spec.gated,
        token_precision=abi.PRECISIONS[operands_of(tokens)],
        dropped_token=-1 if spec.dropped_token is None else spec.dropped_token,
        trigrams=spec.trigrams,
        attention_scale=spec.attention_scale,
        soft_cap=spec.soft_cap or 0,
        embedding_scale=spec.embedding_scale,
        residual_scale=spec.residual_scale,
        parallel=spec.parallel,
        query_growth=spec.query_growth.strength if spec.query_growth else 0,
        query_trained=spec.query_growth.trained if spec.query_growth else 1,
        tokens=abi.address(tokens),
        token_scales=abi.address(arrays.get("embeddings.token.scales")),
        positions=abi.address(arrays.get("embeddings.position")),
        types=abi.address(arrays.get("embeddings.token_type")),
        embedding_norm=read.norm("embeddings.norm"),
        final_norm=read.norm("final_norm"),
        project=read.projection(),
        convolution=read.convolution(),
        convolution_norm=read.norm("convolution.norm"),
        convolution_taps=spec.convolution.taps if spec.convolution else 0,
        position_rows=abi.address(position_rows),
        layers=layers,
        layer_count=len(layers),
        first_decoding=len(encoder) if spec.decoder else -1,
        decoder_start=spec.decoder.start if spec.decoder else 0,
        decoder_positions=abi.address(arrays.get("decoder.position")),
        decoder_norm=read.norm("decoder.norm"),
        rotary_sizes=sizes,
        token_head_layers=token_head,
        token_head_layer_count=len(token_head),
        head_layers=head,
        head_layer_count=len(head),
        modes=modes,
        mode_count=len(modes),
        include_prompt=spec.pooling.include_prompt,
    )
    return model, [read.kept, arrays, position_rows, layers, sizes, token_head, head, modes]


def linear_of(
    arrays: Mapping[str, np.ndarray | None],
    inputs: int,
    outputs: int,
    operands: Operands,
    activation: Activation = "identity",
    hadamard: int = 1,
) -> abi.Linear:
    """A linear layer from the arrays of pack_linear, by their names."""
    return abi.Linear(
        **{part: abi.address(arrays.get(part)) for part in _LINEAR},
        inputs=inputs,
        outputs=outputs,
        precision=abi.PRECISIONS[operands],
        activation=abi.ACTIVATIONS[activation],
        hadamard=hadamard,
    )


class _Reader:
    def __init__(self, spec: EncoderSpec, arrays: Arrays, operands: Mapping[str, Operands]):
        self._spec, self._arrays, self._operands = spec, arrays, operands
        self.kept: list[Any] = []

    def linear(self, name: str, inputs: int, outputs: int, activation: Activation = "identity") -> abi.Linear:
        arrays = {part: self._arrays.get(f"{name}.{part}") for part in _LINEAR}
        of = self._operands[name]
        return linear_of(arrays, inputs, outputs, of, activation, hadamard(self._spec, of, inputs))

    def norm(self, name: str, kind: Norm | None = None) -> abi.Norm:
        """A norm of `kind`, by default the spec's; empty if the plan has no norm of this name."""
        weight, kind = self._arrays.get(f"{name}.weight"), kind or self._spec.norm
        if weight is None:
            return abi.Norm()
        bias = self._arrays.get(f"{name}.bias")
        return abi.Norm(
            weight=abi.address(weight),
            bias=abi.address(bias),
            size=len(weight),
            kind=abi.NORMS[kind.kind],
            eps=kind.eps,
        )

    def projection(self) -> abi.Linear:
        """The projection from the embeddings to the layers; empty if there is none."""
        spec = self._spec
        inputs = spec.embedding_size * (3 if spec.trigrams else 1)
        return self.linear("embeddings.project", inputs, spec.hidden_size) if spec.projects else abi.Linear()

    def convolution(self) -> abi.Linear:
        """The convolution beside the first layer, as a product; empty if there is none."""
        of, hidden = self._spec.convolution, self._spec.hidden_size
        return self.linear("convolution", of.taps * hidden, hidden, of.activation) if of else abi.Linear()

    def layer(self, i: int) -> abi.Layer:
        layer = self._spec.layers[i]
        spec = self._spec.of_layer(layer)
        return abi.Layer(
            **self._products(i),
            experts=self.experts(layer.experts, f"layers.{i}") if layer.experts else abi.Experts(),
            bottleneck=self.bottleneck(layer.bottleneck, f"layers.{i}") if layer.bottleneck else None,
            input=self.input(f"layers.{i}") if spec.layer_inputs else None,
            **{place: self.norm(f"layers.{i}.{place}") for place in abi.LAYER_NORMS},
            kv_heads=spec.kv_heads,
            head_size=spec.head_size,
            causal=spec.causal,
            bias_by_distance=abi.address(self._by_distance(i)),
            **{part: abi.address(self._arrays.get(f"layers.{i}.{part}")) for part in _POSITIONS},
            taps=abi.address(self._arrays.get(f"layers.{i}.taps")),
            tap_count=layer.convolution.taps if layer.convolution else 0,
            first_tap=layer.convolution.first if layer.convolution else 0,
            sinks=abi.address(self._arrays.get(f"layers.{i}.sinks")),
            window=-1 if layer.window is None else layer.window,
            rotary=spec.rotaries.index(layer.rotary) if layer.rotary else -1,
        )

    def _products(self, i: int) -> dict[LinearName, abi.Linear]:
        sizes = linear_sizes(self._spec, self._spec.layers[i])
        kinds = [kind for name, kind in linear_parts(self._spec, i) if name == kind]
        return {part: self._part(self._spec, f"layers.{i}.{part}", *sizes[part]) for part in kinds}

    def _by_distance(self, i: int) -> np.ndarray | None:
        """The biases of a layer's scores: of a table of the spec, or those that come with vectors of positions."""
        table = self._arrays.get(self._spec.bias_name(i))
        return self._arrays.get(f"layers.{i}.bias_by_distance") if table is None else table

    def experts(self, experts: Experts, layer: str) -> abi.Experts:
        spec, of = self._spec, experts.activation
        sizes = linear_sizes(spec, Layer(experts=experts))
        parts: dict[str, Any] = {}
        for part in _MLP:
            names = (f"{layer}.experts.{expert}.{part}" for expert in range(experts.count))
            parts[part] = abi.sequence(abi.Linear, [self._part(experts, name, *sizes[part]) for name in names])
        self.kept += parts.values()
        return abi.Experts(
            **parts,
            router=self.linear(f"{layer}.router", spec.hidden_size, experts.count),
            bias=abi.address(self._arrays.get(f"{layer}.experts.bias")),
            count=experts.count,
            chosen=experts.chosen,
            intermediate_size=experts.intermediate_size,
            gated=experts.gated,
            normalized=experts.normalized,
            alpha=of.alpha if isinstance(of, Clamp) else 0,
            limit=of.limit if isinstance(of, Clamp) else 0,
        )

    def bottleneck(self, bottleneck: Bottleneck, layer: str) -> Any:
        """A pointer to it."""
        sizes, products = bottleneck_sizes(self._spec, bottleneck), {}
        for name, (outputs, inputs) in sizes.items():
            activation = self._spec.activation if name.endswith(".up") else "identity"
            products[name] = self.linear(f"{layer}.{name}", inputs, outputs, activation)
        norms = {name: self.norm(f"{layer}.{name}") for name in bottleneck_norms(self._spec, bottleneck)}
        mlps = [
            abi.NarrowMlp(products.pop(f"mlps.{j}.up"), products.pop(f"mlps.{j}.down"), norms.pop(f"mlps.{j}.norm"))
            for j in range(bottleneck.mlps)
        ]
        made = abi.Bottleneck(**products, **norms, mlps=abi.sequence(abi.NarrowMlp, mlps), mlp_count=len(mlps))
        self.kept.append(made)
        return ctypes.pointer(made)

    def input(self, layer: str) -> Any:
        """A pointer to the layer's own input. Its norm undoes the factor hidden_size^-0.5 of the embeddings, all but
        its share in the norm's eps: norm(a x) with eps is norm(x) with eps / a^2."""
        spec = self._spec
        products = {
            name.removeprefix("input_"): self.linear(
                f"{layer}.{name}", inputs, outputs, spec.activation if name == "input_gate" else "identity"
            )
            for name, (outputs, inputs) in layer_input_sizes(spec).items()
        }
        project_norm = replace(spec.norm, eps=spec.norm.eps * spec.hidden_size)
        made = abi.LayerInput(
            **products,
            project_norm=self.norm("layer_inputs.norm", project_norm),
            norm=self.norm(f"{layer}.input_norm"),
            scale=float(self._arrays[f"{layer}.scale"][0]),
        )
        self.kept.append(made)
        return ctypes.pointer(made)

    def decoder_layers(self) -> list[abi.Layer]:
        """Two for each layer of the decoder: attention to the tokens before, then to the encoder's states, with an
        MLP."""
        count = self._spec.decoder.layers if self._spec.decoder else 0
        return [half for i in range(count) for half in self._decoder_layer(f"decoder.layers.{i}")]

    def _decoder_layer(self, layer: str) -> tuple[abi.Layer, abi.Layer]:
        spec = self._spec
        of = {part: self._part(spec, f"{layer}.{part}", *size) for part, size in decoder_sizes(spec).items()}
        norms = {place: self.norm(f"{layer}.{place}") for place in DECODER_NORMS}
        same = {"kv_heads": spec.kv_heads, "head_size": spec.head_size, "window": -1, "rotary": -1}
        before = abi.Layer(qkv=of["qkv"], out=of["out"], attention_end=norms["attention_end"], causal=True, **same)
        across = abi.Layer(
            qkv=of["query"],
            key_value=of["key_value"],
            out=of["cross_out"],
            attention_end=norms["cross_end"],
            up=of["up"],
            down=of["down"],
            ffn_end=norms["ffn_end"],
            **same,
        )
        return before, across

    def _part(self, of: EncoderSpec | Experts, name: str, outputs: int, inputs: int) -> abi.Linear:
        """A linear part of a layer, whose MLP `of` describes."""
        if not name.endswith(".up"):
            return self.linear(name, inputs, outputs)
        columns = len(self._arrays[f"{name}.bias"])  # gates and gated values are each padded
        activation = "identity" if isinstance(of.activation, Clamp) else of.activation
        return self.linear(name, inputs, columns if of.gated else outputs, activation)

    def head_layers(self, part: str, layers: tuple[HeadLayer, ...]) -> Any:
        return abi.sequence(abi.HeadLayer, [self._head_layer(f"{part}.{i}", layer) for i, layer in enumerate(layers)])

    def _head_layer(self, name: str, layer: HeadLayer) -> abi.HeadLayer:
        match layer:
            case Dense(inputs, outputs, _, activation):
                residual = self.linear(f"{name}.residual", inputs, outputs) if layer.projects else abi.Linear()
                linear = self.linear(name, inputs, outputs, activation)
                return abi.HeadLayer(abi.DENSE, layer.residual, linear=linear, residual=residual)
            case LayerNorm(_, eps, bias):
                return abi.HeadLayer(abi.LAYER_NORM, norm=self.norm(name, Norm("layer", eps, bias)))
            case Normalize():
                return abi.HeadLayer(abi.NORMALIZE)
            case Log1pRelu():
                return abi.HeadLayer(abi.LOG1P_RELU)
            case Int8Tanh():
                return abi.HeadLayer(abi.INT8_TANH)
