"""The engine of models without layers: a mean of rows of a table, in numpy and in the server's own process."""

from collections.abc import Callable

import numpy as np

from bei.architectures.spec import Dense, HeadLayer, LayerNorm, Normalize
from bei.checkpoint.load import Checkpoint
from bei.engines.base import DEFAULTS, Batch, EngineFacts, EngineOptions, pool
from bei.errors import SetupError

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),
}
_TINY = 1e-12  # the eps of torch.nn.functional.normalize
_TOKENS = 1 << 14  # of a batch; more tokens only take more memory


class StaticEngine:
    """Computes in float32."""

    facts = EngineFacts(
        name="static",
        device="cpu",
        precision="fp32",
        reason="the model is a table of vectors",
        streams=1,
        token_budget=_TOKENS,
        is_instant=True,
    )
    fault = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions = DEFAULTS):
        """Raises SetupError for a model with layers, and for another precision than fp32."""
        spec = checkpoint.spec
        if spec.layers:
            raise SetupError("the static engine is for models without layers")
        if options.precision not in ("auto", "fp32"):
            raise SetupError(f"precision {options.precision}: a static model is computed in fp32; leave it out")
        self._table = np.ascontiguousarray(checkpoint.tensors["embeddings.token"], np.float32)
        self._pooling = spec.pooling
        self._head = [_layer(layer, checkpoint, f"head.{i}") for i, layer in enumerate(spec.head)]

    def run(self, batch: Batch) -> np.ndarray:
        states: np.ndarray = self._table[batch.input_ids]
        if batch.row_kind == "tokens":
            return states if batch.marked is None else states[batch.marked]
        rows = pool(states, batch, self._pooling)
        for layer in self._head:
            rows = layer(rows)
        return rows


def _layer(layer: HeadLayer, checkpoint: Checkpoint, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """float32[B, inputs] → float32[B, outputs]. Raises SetupError for a layer that is not supported."""
    weight, bias = (_float(checkpoint, f"{name}.{part}") for part in ("weight", "bias"))
    match layer:
        case Dense(activation=activation) if activation in _ACTIVATIONS:
            activate, residual = _ACTIVATIONS[activation], _float(checkpoint, f"{name}.residual.weight")
            if not layer.residual:
                return lambda x: activate(x @ weight.T + bias)
            return lambda x: activate(x @ weight.T + bias) + (x @ residual.T if layer.projects else x)
        case LayerNorm(eps=eps):
            return lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps) * weight + bias
        case Normalize():
            return lambda x: x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), _TINY)
    raise SetupError(f"modules.json: {layer} is not supported after a StaticEmbedding")


def _float(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """The tensor; 0 if the layer has none of this name."""
    return np.asarray(checkpoint.tensors.get(name, 0), np.float32)
