"""A bidirectional LSTM over sequences of any lengths (Hochreiter and Schmidhuber, 1997), as torch.nn.LSTM computes it:
the gates in the order input, forget, cell, output."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bei.tasks.scores import activate


@dataclass(frozen=True)
class Lstm:
    """One layer, of which the first axis is the direction: forward, backward. inputs: float32[2, D, 4 * H]; states:
    float32[2, H, 4 * H]; bias: float32[2, 4 * H]"""

    inputs: np.ndarray
    states: np.ndarray
    bias: np.ndarray

    def __call__(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32[words, D] each → float32[words, 2 * H] each: the states of both directions at every word."""
        lengths = np.array([len(of) for of in sequences], np.int64)
        order = np.argsort(-lengths, kind="stable")
        found = [np.empty((length, 2 * self.states.shape[1]), np.float32) for length in lengths]
        self._run(self._gates([sequences[i] for i in order]), lengths[order], [found[i] for i in order])
        return found

    def _gates(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """The words' part of the gates: float32[steps, 2, sequences, 4 * H]."""
        gates = np.zeros((max(map(len, sequences)), 2, len(sequences), self.inputs.shape[2]), np.float32)
        for i, of in enumerate(sequences):
            for way, words in enumerate((of, of[::-1])):
                gates[: len(of), way, i] = words @ self.inputs[way] + self.bias[way]
        return gates

    def _run(self, given: np.ndarray, lengths: np.ndarray, found: Sequence[np.ndarray]) -> None:
        """All sequences, the longest first, take a step at once, until they have ended."""
        size = self.states.shape[1]
        hidden, cell = np.zeros((2, 2, len(lengths), size), np.float32)
        for step, gates in enumerate(given):
            active = int(np.count_nonzero(lengths > step))
            gates = gates[:, :active] + hidden[:, :active] @ self.states
            opened, proposed = activate(gates, "sigmoid"), np.tanh(gates[..., 2 * size : 3 * size])
            cell = opened[..., size : 2 * size] * cell[:, :active] + opened[..., :size] * proposed
            hidden = opened[..., 3 * size :] * np.tanh(cell)
            for i, (length, of) in enumerate(zip(lengths[:active].tolist(), found, strict=False)):
                of[step, :size], of[length - 1 - step, size:] = hidden[:, i]
