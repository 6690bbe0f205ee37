"""The inputs of a network (network.py), made from a packed batch. Pure."""

from collections.abc import Callable, Mapping

import numpy as np

from bei.architectures.spec import Pooling
from bei.engines.base import Batch, token_weights


def select(batch: Batch, sequences: np.ndarray) -> Batch:
    """The selected sequences of a batch, in that order."""
    lengths = batch.lengths[sequences]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.repeat(batch.cu_seqlens[:-1][sequences] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
    return Batch(
        input_ids=batch.input_ids[tokens],
        token_types=batch.token_types[tokens],
        cu_seqlens=cu_seqlens,
        prompt_tokens=batch.prompt_tokens[sequences],
        attended=batch.attended[sequences],
        row_kind=batch.row_kind,
    )


def inputs(batch: Batch, names: tuple[str, ...], pooling: Pooling) -> dict[str, np.ndarray]:
    """The arrays of those names."""
    made = _Inputs(batch, pooling)
    return {name: np.ascontiguousarray(made.array(name)) for name in names}


class _Inputs:
    def __init__(self, batch: Batch, pooling: Pooling):
        self._batch = batch
        self._starts, self._ends = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
        self._longest = int(batch.lengths.max())
        self._steps = np.arange(self._longest, dtype=np.int32)
        last = batch.lengths - 1
        self._skipped = np.zeros_like(last) if pooling.include_prompt else np.minimum(batch.prompt_tokens, last)

    def array(self, name: str) -> np.ndarray:
        if name.startswith("pool_"):
            return self._weights(name.removeprefix("pool_"))
        return self._MADE[name](self).astype(np.int32, copy=False)

    def _positions(self) -> np.ndarray:
        positions: np.ndarray = np.arange(len(self._batch.input_ids)) - np.repeat(self._starts, self._batch.lengths)
        return positions

    def _slots(self) -> np.ndarray:
        first = np.arange(len(self._batch)) * self._longest - self._starts
        slots: np.ndarray = np.arange(len(self._batch.input_ids)) + np.repeat(first, self._batch.lengths)
        return slots

    def _sources(self) -> np.ndarray:
        sources: np.ndarray = np.minimum(self._starts[:, None] + self._steps, self._ends[:, None] - 1)
        return sources

    def _weights(self, mode: str) -> np.ndarray:
        """float32[B, S]: the weight of each token in a pooled row; for `max`, whether it counts."""
        pooled = (self._steps >= self._skipped[:, None]) & (self._steps < self._batch.lengths[:, None])
        return pooled.astype(np.float32) if mode == "max" else token_weights(mode, pooled)

    _MADE: Mapping[str, Callable[["_Inputs"], np.ndarray]] = {
        "input_ids": lambda self: self._batch.input_ids,
        "token_types": lambda self: self._batch.token_types,
        "positions": _positions,
        "cu_seqlens": lambda self: self._batch.cu_seqlens,
        "slots": _slots,
        "sources": _sources,
        "steps": lambda self: self._steps,
        "attended": lambda self: self._batch.attended,
        "firsts": lambda self: self._starts + self._skipped,
        "lasts": lambda self: self._ends - 1,
    }
