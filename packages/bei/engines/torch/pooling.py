"""Pooling on the device: token states to rows. `engines.base.pool` is its oracle."""

import torch
from torch import Tensor

from bei.architectures.spec import Pooling
from bei.engines.torch.inputs import Inputs


def pool(states: Tensor, inputs: Inputs, pooling: Pooling) -> Tensor:
    """states: float32[T, hidden], sorted as the inputs → float32[B, hidden * len(modes)], sorted too. Does not wait for
    the device. Tokens after the last sequence are ignored."""
    reduce = _Reduction(states, inputs, pooling)
    reduced = [reduce(mode) for mode in pooling.modes]
    return reduced[0] if len(reduced) == 1 else torch.cat(reduced, 1)


class _Reduction:
    def __init__(self, states: Tensor, inputs: Inputs, pooling: Pooling):
        self._states, self._lengths = states, inputs["lengths"]
        self._starts, self._ends = inputs["cu_seqlens"][:-1], inputs["cu_seqlens"][1:]
        self._weights = (inputs["positions"] + 1)[:, None].float()
        self._counts = self._lengths[:, None]
        self._hidden = None
        if not pooling.include_prompt:
            self._starts = self._starts + inputs["skipped"]
            self._counts = self._counts - inputs["skipped"][:, None]
            self._hidden = (inputs["positions"] < inputs["skipped"][inputs["owners"]])[:, None]

    def __call__(self, mode: str) -> Tensor:
        match mode:
            case "first":
                return self._states[self._starts.clamp(max=len(self._states) - 1)]
            case "last":
                return self._states[self._ends - 1]
            case "max":
                return self._over(self._states, "max")
            case "sum":
                return self._over(self._states, "sum")
            case "mean":
                return self._over(self._states, "sum") / self._counts
            case "mean_sqrt_len":
                return self._over(self._states, "sum") / self._counts.sqrt()
            case "weighted_mean":
                return self._over(self._states * self._weights, "sum") / self._over(self._weights, "sum")
            case _:
                raise ValueError(f"no such pooling mode: {mode}")

    def _over(self, rows: Tensor, how: str) -> Tensor:
        if self._hidden is not None:
            rows = rows.masked_fill(self._hidden, -torch.inf if how == "max" else 0.0)
        return torch.segment_reduce(rows, how, lengths=self._lengths, axis=0, unsafe=True)
