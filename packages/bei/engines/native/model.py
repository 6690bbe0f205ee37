"""An EncoderSpec and the arrays of its plan, as the library reads them."""

import ctypes
from collections.abc import Mapping

import numpy as np

from bei.architectures.spec import Activation, Dense, EncoderSpec, LayerNorm, Log1pRelu, Normalize, Stage
from bei.engines.native import abi
from bei.engines.native.pack import linear_names

_LINEAR = ("panels", "scales", "sums", "bias", "input_scales")
Arrays = Mapping[str, np.ndarray]


def model_of(spec: EncoderSpec, precision: str, arrays: Arrays) -> tuple[abi.Model, list]:
    """The model, and what must live as long as it does."""
    read = _Reader(spec, arrays, dict(linear_names(spec, precision)))
    layers = abi.sequence(abi.Layer, [read.layer(f"layers.{i}") for i in range(spec.layers)])
    token_stages, stages = read.stages("token_head", spec.token_head), read.stages("head", spec.head)
    modes = abi.sequence(ctypes.c_int32, [abi.MODES[mode] for mode in spec.pooling.modes])
    tables = ("embeddings.token", "embeddings.position", "embeddings.token_type", "relative_bias")
    model = abi.Model(
        abi.PRECISIONS[precision],
        *(spec.vocab_size, spec.hidden_size, spec.heads, spec.intermediate_size),
        *(spec.max_tokens, spec.token_types, spec.embedding_size),
        *(abi.address(arrays.get(name)) for name in tables),
        read.norm("embeddings.norm", spec.embedding_size, spec.norm_eps),
        read.projection(),
        *(layers, len(layers)),
        *(token_stages, stages, len(token_stages), len(stages)),
        *(modes, len(modes), spec.pooling.include_prompt),
    )
    return model, [arrays, layers, token_stages, stages, modes]


def linear_of(
    arrays: Arrays, inputs: int, outputs: int, precision: str, activation: Activation = "identity"
) -> abi.Linear:
    """A product from the arrays that pack_linear made, by its names."""
    parts = (abi.address(arrays.get(part)) for part in _LINEAR)
    return abi.Linear(*parts, inputs, outputs, abi.PRECISIONS[precision], abi.ACTIVATIONS[activation])


class _Reader:
    def __init__(self, spec: EncoderSpec, arrays: Arrays, precisions: Mapping[str, str]):
        self._spec, self._arrays, self._precisions = spec, arrays, precisions

    def linear(self, name: str, inputs: int, outputs: int, activation: Activation = "identity") -> abi.Linear:
        arrays = {part: self._arrays.get(f"{name}.{part}") for part in _LINEAR}
        return linear_of(arrays, inputs, outputs, self._precisions[name], activation)

    def norm(self, name: str, size: int, eps: float) -> abi.Norm:
        parts = (abi.address(self._arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        return abi.Norm(*parts, size, eps)

    def projection(self) -> abi.Linear:
        """From the embeddings to the layers, empty where they are of one size."""
        spec = self._spec
        if spec.embedding_size == spec.hidden_size:
            return abi.Linear()
        return self.linear("embeddings.project", spec.embedding_size, spec.hidden_size)

    def layer(self, name: str) -> abi.Layer:
        spec = self._spec
        hidden, inner = spec.hidden_size, spec.intermediate_size
        return abi.Layer(
            self.linear(f"{name}.qkv", hidden, 3 * hidden),
            self.linear(f"{name}.out", hidden, hidden),
            self.linear(f"{name}.up", hidden, inner, spec.activation),
            self.linear(f"{name}.down", inner, hidden),
            self.norm(f"{name}.attention_norm", hidden, spec.norm_eps),
            self.norm(f"{name}.ffn_norm", hidden, spec.norm_eps),
        )

    def stages(self, part: str, stages: tuple[Stage, ...]) -> ctypes.Array:
        return abi.sequence(abi.Stage, [self._stage(f"{part}.{i}", stage) for i, stage in enumerate(stages)])

    def _stage(self, name: str, stage: Stage) -> abi.Stage:
        match stage:
            case Dense(inputs, outputs, _, activation):
                return abi.Stage(abi.DENSE, linear=self.linear(name, inputs, outputs, activation))
            case LayerNorm(size, eps):
                return abi.Stage(abi.LAYER_NORM, norm=self.norm(name, size, eps))
            case Normalize():
                return abi.Stage(abi.NORMALIZE)
            case Log1pRelu():
                return abi.Stage(abi.LOG1P_RELU)
