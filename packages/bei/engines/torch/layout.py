"""The sorted order of a packed batch: sequences by length, so that those of equal length are adjacent."""

from dataclasses import dataclass

import numpy as np

from bei.batching import RowKind
from bei.engines.base import Batch


@dataclass(frozen=True)
class Group:
    """`count` sequences of `length` tokens each, from sorted sequence `first` and token `start`: a block
    [count, length, ...] without padding."""

    first: int
    start: int
    count: int
    length: int

    @property
    def sequences(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


@dataclass(frozen=True)
class Layout:
    """The sorted batch. sequences: int64[B], the original index of each sorted one; lengths: int64[B], sorted;
    tokens: int64[T], the original index of each sorted token; positions: int64[T], within its sequence; owners:
    int64[T], the sorted sequence it belongs to."""

    sequences: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    owners: np.ndarray
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        sequences = np.argsort(batch.lengths, kind="stable")
        lengths = batch.lengths[sequences].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        tokens = np.repeat(batch.cu_seqlens[:-1][sequences], lengths) + positions
        owners = np.repeat(np.arange(len(lengths)), lengths)
        found, first, counts = np.unique(lengths, return_index=True, return_counts=True)
        groups = tuple(
            Group(int(i), int(starts[i]), int(n), int(length))
            for length, i, n in zip(found, first, counts, strict=True)
        )
        return cls(sequences, lengths, tokens, positions, owners, groups)

    def unsorted(self, rows: np.ndarray, kind: RowKind) -> np.ndarray:
        """Rows of sorted sequences, or of their tokens, in the order of the batch."""
        found = np.empty_like(rows)
        found[self.tokens if kind == "tokens" else self.sequences] = rows
        return found
