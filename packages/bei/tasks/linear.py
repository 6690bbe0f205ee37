"""Linear layers of heads that are computed here, from weights by their names."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias. weight: float32[inputs, outputs]; bias: float32[outputs]"""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = x @ self.weight + self.bias
        return y


@dataclass(frozen=True)
class Two:
    """Two linear layers, with a ReLU between them."""

    first: Linear
    second: Linear

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.second(relu(self.first(x)))


def relu(x: np.ndarray) -> np.ndarray:
    """In place."""
    found: np.ndarray = np.maximum(x, 0, out=x)
    return found


def linear(weights: Mapping[str, np.ndarray], name: str, ending: str = ".") -> Linear:
    return Linear(np.ascontiguousarray(weights[f"{name}{ending}weight"].T), weights[f"{name}{ending}bias"])


def two(weights: Mapping[str, np.ndarray], name: str, step: int = 3) -> Two:
    """The first linear layer of a sequence of modules, and the one `step` modules later."""
    return Two(linear(weights, f"{name}.0"), linear(weights, f"{name}.{step}"))
