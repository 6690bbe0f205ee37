"""The encoder's inputs: arrays of a batch, laid out on the host and copied to the device as one block."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bei.architectures.spec import EncoderSpec
from bei.batching import RowKind
from bei.engines.base import Batch
from bei.engines.rotary import RotaryTable
from bei.engines.torch.layout import Layout

_ALIGNMENT = 256  # bytes, of each array in the block that goes to the device


@dataclass(frozen=True)
class Inputs:
    """The sorted batch. `attended`: int32[B], on the host; `longest`: tokens of the longest sequence. `tensors`:

    ids, types, positions: int32[T]; lengths: int64[B]; cu_seqlens: int32[B + 1];
    skipped: int32[B], how many leading tokens pooling leaves out, and owners: int64[T], where it does;
    marked: int64[M], the tokens that have rows, in the order of the batch, where only some have;
    cos_sin.{i}: float32[T, size], of the i-th rotary, where its angles depend on a sequence's length.
    """

    layout: Layout
    attended: np.ndarray
    longest: int
    tensors: Mapping[str, Tensor]

    @property
    def all_seen(self) -> bool:
        """Whether every token is attended to."""
        return bool((self.attended >= self.layout.lengths).all())

    def unsorted(self, rows: np.ndarray, kind: RowKind) -> np.ndarray:
        """Rows of the sorted batch in its order. Those of marked tokens are in it already."""
        return rows if "marked" in self else self.layout.unsorted(rows, kind)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @classmethod
    def of(cls, batch: Batch, spec: EncoderSpec) -> "Inputs":
        """On the host."""
        layout = Layout.of(batch)
        lengths, attended = layout.lengths, batch.attended[layout.sequences]
        arrays = {
            "ids": batch.input_ids[layout.tokens],
            "types": batch.token_types[layout.tokens],
            "positions": layout.positions.astype(np.int32),
            "lengths": lengths,
            "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        }
        if not spec.pooling.include_prompt:
            skipped = np.minimum(batch.prompt_tokens[layout.sequences], lengths - 1)
            arrays |= {"skipped": skipped.astype(np.int32), "owners": layout.owners}
        if batch.marked is not None:
            arrays["marked"] = np.argsort(layout.tokens)[batch.marked]
        for i, rotary in enumerate(spec.rotaries):
            if rotary.dynamic:
                arrays[f"cos_sin.{i}"] = RotaryTable(rotary).rows(layout.positions, lengths[layout.owners])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(layout, attended, int(lengths[-1]), tensors)

    def on(self, device: torch.device) -> "Inputs":
        """On a GPU; the copy is queued on its current stream."""
        block, views = to_pinned({name: tensor.numpy() for name, tensor in self.tensors.items()}, pin=True)
        return replace(self, tensors=views(block.to(device, non_blocking=True)))


class Views:
    """Tensors as views of one block of bytes."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._of = {name: (torch.from_numpy(array).dtype, array.shape) for name, array in arrays.items()}
        self.offsets, self.size = {}, 0
        for name, array in arrays.items():
            self.offsets[name] = self.size
            self.size += array.nbytes + -array.nbytes % _ALIGNMENT

    def __call__(self, block: Tensor) -> dict[str, Tensor]:
        """block: uint8[size]"""
        found = {}
        for name, (dtype, shape) in self._of.items():
            start, count = self.offsets[name], int(np.prod(shape))
            found[name] = block[start : start + count * dtype.itemsize].view(dtype).view(shape)
        return found


def to_pinned(arrays: Mapping[str, np.ndarray], pin: bool) -> tuple[Tensor, Views]:
    """One block that holds all arrays, in pinned memory with `pin`; and the views of it."""
    views = Views(arrays)
    block = torch.empty(views.size, dtype=torch.uint8, pin_memory=pin)
    for name, tensor in views(block).items():
        tensor.copy_(torch.from_numpy(arrays[name]))
    return block, views
