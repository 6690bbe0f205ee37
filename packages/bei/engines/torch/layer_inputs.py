"""Every layer's own input from the embeddings (architectures/spec.py: LayerInputs)."""

from torch import Tensor

from bei.architectures.spec import Activation, EncoderSpec
from bei.engines.torch.fused import fused
from bei.engines.torch.linear import ACTIVATIONS, read_linear
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.weights import Weights


class InputsOfLayers:
    """The embeddings, float32[rows, hidden] → float32[rows, layers, size]"""

    def __init__(self, spec: EncoderSpec, size: int, weights: Weights):
        self._scale, self._size, self._dtype = spec.hidden_size**-0.5, size, weights.dtype
        self._project = read_linear(weights, "layer_inputs.project", bias=False)
        self._norm = NormLayer(spec.norm, weights, "layer_inputs.norm")

    def __call__(self, embeddings: Tensor) -> Tensor:
        projected = self._project(embeddings.to(self._dtype)).float() * self._scale
        return self._norm(projected.unflatten(1, (-1, self._size)))


class InputGate:
    """The end of one layer: float32[rows, hidden] and its inputs, float32[rows, size] → float32[rows, hidden]"""

    def __init__(self, spec: EncoderSpec, weights: Weights, layer: str):
        self._activation, self._dtype = spec.activation, weights.dtype
        self._gate, self._out = (read_linear(weights, f"{layer}.{part}", False) for part in ("input_gate", "input_out"))
        self._norm, self._scale = NormLayer(spec.norm, weights, f"{layer}.input_norm"), weights.exact(f"{layer}.scale")

    def __call__(self, x: Tensor, inputs: Tensor) -> Tensor:
        gated = _gated(self._gate(x.to(self._dtype)), inputs, self._activation)
        added: Tensor = self._norm(self._out(gated).float())
        return (x + added) * self._scale


@fused
def _gated(gate: Tensor, inputs: Tensor, activation: Activation) -> Tensor:
    return (ACTIVATIONS[activation](gate.float()) * inputs).to(gate.dtype)
