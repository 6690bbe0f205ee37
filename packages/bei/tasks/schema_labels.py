"""GLiNER2's labels: the states of a schema in, the vectors that spans are compared with out (the library `gliner2`:
CountLSTM, CountLSTMv2). The library makes vectors for each of several structures; entities have those of the first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bei.checkpoint.gliner2 import HEADS, INNER, TRANSFORMER_LAYERS
from bei.tasks.linear import Linear, linear, relu, two
from bei.tasks.scores import activate

_PLACE = "count_embed"
_EPS = np.float32(1e-5)  # of torch.nn.TransformerEncoderLayer


class Counted:
    """States of the schema and of its labels, float32[1 + labels, D] → float32[labels, D]; float32[0, D] where the
    schema's state says that the text has none of them."""

    def __init__(self, weights: Mapping[str, np.ndarray], kind: str):
        self._count = two(weights, "count_pred", step=2)
        self._position = weights[f"{_PLACE}.pos_embedding.weight"][0]
        self._inputs, self._states = (_gates(weights, of) for of in ("ih", "hh"))
        self._last: Callable[[np.ndarray, np.ndarray], np.ndarray] = (
            _Transformer(weights) if kind == "count_lstm_v2" else _Projector(weights)
        )

    def __call__(self, states: np.ndarray) -> np.ndarray:
        labels = states[1:]
        return self._last(self._step(labels), labels) if np.argmax(self._count(states[0])) else labels[:0]

    def _step(self, labels: np.ndarray) -> np.ndarray:
        """One step of a GRU, whose state is a label's: reset, update, proposal."""
        given, held = (np.split(of, 3, -1) for of in (self._inputs(self._position), self._states(labels)))
        reset, update = (activate(given[i] + held[i], "sigmoid") for i in (0, 1))
        proposed = np.tanh(given[2] + reset * held[2])
        found: np.ndarray = (1 - update) * proposed + update * labels
        return found


class _Projector:
    """`count_lstm`"""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._layers = two(weights, f"{_PLACE}.projector", step=2)

    def __call__(self, stepped: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self._layers(np.concatenate([stepped, labels], 1))


class _Transformer:
    """`count_lstm_v2`: a small transformer over the labels."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        place = f"{_PLACE}.transformer"
        self._first = linear(weights, f"{place}.in_projector")
        self._layers = [_Layer.of(weights, f"{place}.transformer.layers.{i}") for i in range(TRANSFORMER_LAYERS)]
        self._last = [linear(weights, f"{place}.out_projector.{i}") for i in (0, 2, 4)]

    def __call__(self, stepped: np.ndarray, labels: np.ndarray) -> np.ndarray:
        whole = stepped + labels
        x = self._first(whole)
        for layer in self._layers:
            x = layer(x)
        first, second, last = self._last
        return last(relu(second(relu(first(np.concatenate([x, whole], 1))))))


@dataclass(frozen=True)
class _Layer:
    """torch.nn.TransformerEncoderLayer, whose norms are at the ends."""

    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    norms: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray], place: str) -> "_Layer":
        return cls(
            linear(weights, f"{place}.self_attn.in_proj", "_"),
            linear(weights, f"{place}.self_attn.out_proj"),
            linear(weights, f"{place}.linear1"),
            linear(weights, f"{place}.linear2"),
            tuple((weights[f"{place}.norm{i}.weight"], weights[f"{place}.norm{i}.bias"]) for i in (1, 2)),
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = _norm(x + self._attended(x), *self.norms[0])
        return _norm(x + self.down(relu(self.up(x))), *self.norms[1])

    def _attended(self, x: np.ndarray) -> np.ndarray:
        size = INNER // HEADS
        q, k, v = self.qkv(x).reshape(len(x), 3, HEADS, size).transpose(1, 2, 0, 3)
        shares = activate(q @ k.transpose(0, 2, 1) / np.float32(size**0.5), "softmax")
        return self.out((shares @ v).transpose(1, 0, 2).reshape(len(x), INNER))


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centered = x - x.mean(1, keepdims=True)
    found: np.ndarray = centered / np.sqrt((centered * centered).mean(1, keepdims=True) + _EPS) * weight + bias
    return found


def _gates(weights: Mapping[str, np.ndarray], of: str) -> Linear:
    place = f"{_PLACE}.gru"
    return Linear(np.ascontiguousarray(weights[f"{place}.weight_{of}_l0"].T), weights[f"{place}.bias_{of}_l0"])
