"""Runs a batch through a plan: cuts it for the profiles, executes the chunks, and restores the order."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bei.architectures.spec import EncoderSpec
from bei.engines.base import Batch
from bei.engines.tensorrt.inputs import Inputs, select
from bei.engines.tensorrt.profiles import Chunk, Profile, chunks


@dataclass(frozen=True)
class Call:
    """One execution: the number of the profile, and the network's inputs by name."""

    profile: int
    inputs: dict[str, np.ndarray]


class Execution(Protocol):
    """Runs one batch at a time. `inputs` are the names that the network has."""

    inputs: tuple[str, ...]

    def run(self, calls: Sequence[Call], output: str) -> list[np.ndarray]:
        """That output of each call: float32."""
        ...


class Runner:
    """As many batches at once as there are executions, from any thread."""

    def __init__(self, spec: EncoderSpec, profiles: tuple[Profile, ...], executions: Sequence[Execution]):
        self._inputs, self._profiles = Inputs(spec), profiles
        self._free: queue.SimpleQueue[Execution] = queue.SimpleQueue()
        for execution in executions:
            self._free.put(execution)

    def run(self, batch: Batch) -> np.ndarray:
        cut = chunks(batch.lengths, self._profiles)
        parts = [select(batch, chunk.sequences) for chunk in cut]
        execution = self._free.get()
        try:
            made = [self._inputs.of(part, execution.inputs) for part in parts]
            calls = [Call(chunk.profile, inputs) for chunk, inputs in zip(cut, made, strict=True)]
            found = execution.run(calls, batch.row_kind)
        finally:
            self._free.put(execution)
        rows = _in_order(batch, cut, parts, found)
        return rows if batch.marked is None else rows[batch.marked]


def _in_order(batch: Batch, cut: list[Chunk], parts: list[Batch], found: list[np.ndarray]) -> np.ndarray:
    """The rows of all chunks, in the order of the batch."""
    rows = np.concatenate(found)
    order = np.concatenate([chunk.sequences for chunk in cut])
    if batch.row_kind == "tokens":
        lengths = np.concatenate([part.lengths for part in parts])
        starts = np.cumsum(lengths) - lengths
        order = np.repeat(batch.cu_seqlens[order] - starts, lengths) + np.arange(len(rows))
    ordered = np.empty_like(rows)
    ordered[order] = rows
    return ordered
