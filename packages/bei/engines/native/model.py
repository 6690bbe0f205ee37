"""An EncoderSpec and the arrays of its plan, as the library reads them."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from bei.architectures.shapes import linear_sizes
from bei.architectures.spec import (
    LINEARS,
    Activation,
    Dense,
    EncoderSpec,
    HeadLayer,
    LayerNorm,
    LinearName,
    Log1pRelu,
    Norm,
    Normalize,
)
from bei.engines.native import abi
from bei.engines.native.pack import linear_names

_LINEAR = ("panels", "scales", "sums", "bias", "input_scales")
Arrays = Mapping[str, np.ndarray]


def model_of(spec: EncoderSpec, precision: str, arrays: Arrays) -> tuple[abi.Model, list[Any]]:
    """The model, and the objects that must live as long as it does."""
    read = _Reader(spec, arrays, dict(linear_names(spec, precision)))
    layers = abi.sequence(abi.Layer, [read.layer(i) for i in range(len(spec.layers))])
    token_head, head = read.head_layers("token_head", spec.token_head), read.head_layers("head", spec.head)
    modes = abi.sequence(ctypes.c_int32, [abi.MODES[mode] for mode in spec.pooling.modes])
    sizes = abi.sequence(ctypes.c_int32, [rotary.size for rotary in spec.rotaries])
    tokens = arrays["embeddings.token"]
    model = abi.Model(
        abi.PRECISIONS[precision],
        *(spec.vocab_size, spec.hidden_size, spec.heads, spec.kv_heads, spec.head_size, spec.intermediate_size),
        *(spec.max_tokens, spec.token_types, spec.embedding_size),
        *(spec.causal, spec.gated, tokens.dtype != np.float32),
        *(spec.attention_scale, spec.soft_cap or 0, spec.embedding_scale),
        abi.address(tokens),
        *(abi.address(arrays.get(name)) for name in ("embeddings.position", "embeddings.token_type", "relative_bias")),
        *(read.norm("embeddings.norm"), read.norm("final_norm")),
        read.projection(),
        *(layers, len(layers)),
        sizes,
        *(token_head, head, len(token_head), len(head)),
        *(modes, len(modes), spec.pooling.include_prompt),
    )
    return model, [arrays, layers, sizes, token_head, head, modes]


def linear_of(
    arrays: Mapping[str, np.ndarray | None],
    inputs: int,
    outputs: int,
    precision: str,
    activation: Activation = "identity",
) -> abi.Linear:
    """A linear layer from the arrays of pack_linear, by their names."""
    parts = (abi.address(arrays.get(part)) for part in _LINEAR)
    return abi.Linear(*parts, inputs, outputs, abi.PRECISIONS[precision], abi.ACTIVATIONS[activation])


class _Reader:
    def __init__(self, spec: EncoderSpec, arrays: Arrays, precisions: Mapping[str, str]):
        self._spec, self._arrays, self._precisions = spec, arrays, precisions

    def linear(self, name: str, inputs: int, outputs: int, activation: Activation = "identity") -> abi.Linear:
        arrays = {part: self._arrays.get(f"{name}.{part}") for part in _LINEAR}
        return linear_of(arrays, inputs, outputs, self._precisions[name], activation)

    def norm(self, name: str, kind: Norm | None = None) -> abi.Norm:
        """A norm of `kind`, by default the spec's; empty if the plan has no norm of this name."""
        weight, kind = self._arrays.get(f"{name}.weight"), kind or self._spec.norm
        if weight is None:
            return abi.Norm()
        bias = self._arrays.get(f"{name}.bias")
        return abi.Norm(abi.address(weight), abi.address(bias), len(weight), kind.kind == "rms", kind.eps)

    def projection(self) -> abi.Linear:
        """The projection from the embeddings to the layers; empty if both have one size."""
        spec = self._spec
        if spec.embedding_size == spec.hidden_size:
            return abi.Linear()
        return self.linear("embeddings.project", spec.embedding_size, spec.hidden_size)

    def layer(self, i: int) -> abi.Layer:
        spec, layer = self._spec, self._spec.layers[i]
        sizes = linear_sizes(spec)
        linears = (self._part(f"layers.{i}.{part}", part, *sizes[part]) for part in LINEARS)
        norms = (self.norm(f"layers.{i}.{place}") for place in abi.LAYER_NORMS)
        window = -1 if layer.window is None else layer.window
        return abi.Layer(*linears, *norms, window, spec.rotaries.index(layer.rotary) if layer.rotary else -1)

    def _part(self, name: str, part: LinearName, outputs: int, inputs: int) -> abi.Linear:
        if part != "up":
            return self.linear(name, inputs, outputs)
        columns = len(self._arrays[f"{name}.bias"])  # gates and gated values are each padded
        return self.linear(name, inputs, columns if self._spec.gated else outputs, self._spec.activation)

    def head_layers(self, part: str, layers: tuple[HeadLayer, ...]) -> Any:
        return abi.sequence(abi.HeadLayer, [self._head_layer(f"{part}.{i}", layer) for i, layer in enumerate(layers)])

    def _head_layer(self, name: str, layer: HeadLayer) -> abi.HeadLayer:
        match layer:
            case Dense(inputs, outputs, _, activation):
                return abi.HeadLayer(abi.DENSE, linear=self.linear(name, inputs, outputs, activation))
            case LayerNorm(_, eps, bias):
                return abi.HeadLayer(abi.LAYER_NORM, norm=self.norm(name, Norm("layer", eps, bias)))
            case Normalize():
                return abi.HeadLayer(abi.NORMALIZE)
            case Log1pRelu():
                return abi.HeadLayer(abi.LOG1P_RELU)
