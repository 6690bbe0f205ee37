"""The inputs of a network, made from a packed batch. Pure.

T tokens, B sequences, S tokens of the longest one; int32 unless it says otherwise:

    input_ids, token_types, positions       [T]
    near_{d}                                [T]       the token d places after each one in its sequence; -1: none
    seen                                    [T]       1 for a token that is attended to, else 0
    kept                                    [T]       float32, what multiplies each token's embedding (`dropped_token`)
    cos_sin_{i}                             [T, size] float32, of the i-th rotary, if it depends on a text's length
    cu_seqlens                              [B + 1]   of packed attention
    slots                                   [T]       where each token stands among B * S padded ones
    sources                                 [B, S]    the token at each padded place; any token at an empty place
    steps                                   [S]       0, 1, 2, …
    attended                                [B]       the number of leading tokens that are attended to
    firsts, lasts                           [B]       tokens that are pooled alone
    pool_{mode}                             [B, S]    float32, the weight of each token in a pooled row
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bei.architectures.spec import EncoderSpec
from bei.engines.base import Batch, token_weights
from bei.engines.rotary import RotaryTable
from bei.engines.tensorrt.profiles import Profile

_FLOATS = ("pool_", "cos_sin_", "kept")
_BY_SEQUENCE = ("attended", "firsts", "lasts")


def shape(name: str, spec: EncoderSpec, of: Profile) -> tuple[int, ...]:
    """Of the input of that name, in a call of those sizes."""
    if name in _BY_SEQUENCE:
        return (of.sequences,)
    if name == "cu_seqlens":
        return (of.sequences + 1,)
    if name == "steps":
        return (of.length,)
    if name == "sources" or name.startswith("pool_"):
        return of.sequences, of.length
    if name.startswith("cos_sin_"):
        return of.tokens, spec.rotaries[_number(name)].size
    return (of.tokens,)


def declared(name: str, spec: EncoderSpec) -> tuple[str, tuple[int, ...]]:
    """The type and the shape of the input of that name; -1 where calls differ."""
    one, two = shape(name, spec, Profile(1, 1, 1)), shape(name, spec, Profile(2, 2, 2))
    dtype = "float32" if name.startswith(_FLOATS) else "int32"
    return dtype, tuple(a if a == b else -1 for a, b in zip(one, two, strict=True))


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


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


class Inputs:
    """Makes the inputs of a spec's network."""

    def __init__(self, spec: EncoderSpec):
        self._spec = spec
        self._rotaries = [RotaryTable(rotary) if rotary.dynamic else None for rotary in spec.rotaries]

    def of(self, batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of those names."""
        made = _Made(batch, self._spec, self._rotaries)
        return {name: np.ascontiguousarray(made.array(name)) for name in names}


class _Made:
    def __init__(self, batch: Batch, spec: EncoderSpec, rotaries: Sequence[RotaryTable | None]):
        self._batch, self._spec, self._rotaries = batch, spec, rotaries
        self._starts, self._ends = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
        self._longest = int(batch.lengths.max())
        self._steps = np.arange(self._longest, dtype=np.int32)
        last, prompts = batch.lengths - 1, batch.prompt_tokens
        self._skipped = np.zeros_like(last) if spec.pooling.include_prompt else np.minimum(prompts, last)

    def array(self, name: str) -> np.ndarray:
        if name.startswith("pool_"):
            return self._weights(name.removeprefix("pool_"))
        if name.startswith("cos_sin_"):
            return self._cos_sin(_number(name))
        if name.startswith("near_"):
            return self._near(_number(name)).astype(np.int32)
        if name == "kept":
            return self._kept()
        return self._MADE[name](self).astype(np.int32, copy=False)

    def _positions(self) -> np.ndarray:
        positions: np.ndarray = np.arange(len(self._batch.input_ids)) - self._of_tokens(self._starts)
        return positions

    def _of_tokens(self, values: np.ndarray) -> np.ndarray:
        """[B] → [T], of each token's sequence"""
        return np.repeat(values, self._batch.lengths)

    def _cos_sin(self, number: int) -> np.ndarray:
        table = self._rotaries[number]
        if table is None:
            raise ValueError(f"the network has a table for rotary {number}")
        return table.rows(self._positions(), self._of_tokens(self._batch.lengths))

    def _near(self, distance: int) -> np.ndarray:
        at = self._positions() + distance
        is_inside = (at >= 0) & (at < self._of_tokens(self._batch.lengths))
        return np.where(is_inside, np.arange(len(at)) + distance, -1)

    def _seen(self) -> np.ndarray:
        seen: np.ndarray = self._positions() < self._of_tokens(self._batch.attended)
        return seen

    def _kept(self) -> np.ndarray:
        """float32[T]: zero for a dropped token; for others the number that makes up for those of their sequence."""
        is_dropped = self._batch.input_ids == self._spec.dropped_token
        lengths = self._batch.lengths.astype(np.float32)
        kept = np.add.reduceat(~is_dropped, self._starts, dtype=np.float32)
        makes_up = np.divide(lengths, kept, out=np.zeros_like(lengths), where=kept > 0)
        return np.where(is_dropped, np.float32(0), self._of_tokens(makes_up))

    def _slots(self) -> np.ndarray:
        first = np.arange(len(self._batch)) * self._longest - self._starts
        slots: np.ndarray = np.arange(len(self._batch.input_ids)) + self._of_tokens(first)
        return slots

    def _sources(self) -> np.ndarray:
        sources: np.ndarray = np.minimum(self._starts[:, None] + self._steps, self._ends[:, None] - 1)
        return sources

    def _weights(self, mode: str) -> np.ndarray:
        """float32[B, S]: the weight of each token in a pooled row; for `max`, whether it counts."""
        pooled = (self._steps >= self._skipped[:, None]) & (self._steps < self._batch.lengths[:, None])
        return pooled.astype(np.float32) if mode == "max" else token_weights(mode, pooled)

    _MADE: Mapping[str, Callable[["_Made"], np.ndarray]] = {
        "input_ids": lambda self: self._batch.input_ids,
        "token_types": lambda self: self._batch.token_types,
        "positions": _positions,
        "cu_seqlens": lambda self: self._batch.cu_seqlens,
        "seen": _seen,
        "slots": _slots,
        "sources": _sources,
        "steps": lambda self: self._steps,
        "attended": lambda self: self._batch.attended,
        "firsts": lambda self: self._starts + self._skipped,
        "lasts": lambda self: self._ends - 1,
    }
