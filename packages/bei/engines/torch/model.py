"""An EncoderSpec with its weights: inputs to rows, on whatever device both are."""

from torch import Tensor

from bei.architectures.spec import EncoderSpec
from bei.batching import RowKind
from bei.engines.torch.encoder import Encoder
from bei.engines.torch.head import TaskHead
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.weights import Weights


class Model:
    def __init__(self, spec: EncoderSpec, weights: Weights):
        self.spec, self.device = spec, weights.device
        self._encoder, self._head = Encoder(spec, weights), TaskHead(spec, weights)

    def __call__(self, inputs: Inputs, row_kind: RowKind) -> Tensor:
        """float32[B, row_size], or float32[T, token_size], in the order of the inputs; float32[M, token_size] of
        marked tokens, in theirs."""
        states = self._encoder(inputs)
        if row_kind == "pooled":
            return self._head.rows(states, inputs)
        return self._head.marked(states, inputs["marked"]) if "marked" in inputs else self._head.tokens(states)

    def asks_the_host(self, inputs: Inputs) -> bool:
        """Whether the host takes part in computing pooled rows, so that they cannot be recorded as a graph."""
        return self._head.streams or self._encoder.asks_the_host(inputs)
