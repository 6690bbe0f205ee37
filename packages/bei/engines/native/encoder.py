"""A model in the C++ library: batches to rows."""

import ctypes
from collections.abc import Mapping

import numpy as np

from bei.architectures.spec import EncoderSpec
from bei.engines.allowance import Allowance
from bei.engines.base import Batch
from bei.engines.compute import Compute
from bei.engines.native import abi
from bei.engines.native.model import model_of
from bei.engines.prefixes import can_share, share
from bei.engines.processor import Caches, caches
from bei.engines.rotary import RotaryTable
from bei.errors import EngineFailed, SetupError

MEETING, WAKING = 1.5, 60.0
"""Microseconds: of the end of a step for each thread that meets there, and of a thread that wakes up."""


def machine_of(threads: int, caches: Caches) -> abi.Machine:
    return abi.Machine(threads, caches.second, caches.last, MEETING, WAKING)


class Encoder:
    """Runs the arrays of a plan. Safe to call from several threads; it runs without the interpreter's lock.

    `threads` is the number that run at once, including helpers; the allowance bounds it. `input_peaks` (cpp/abi.h) are
    written to while it runs.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        spec: EncoderSpec,
        compute: Compute,
        arrays: Mapping[str, np.ndarray],
        threads: int,
        allowance: Allowance | None = None,
        input_peaks: np.ndarray | None = None,
    ):
        self._library, self._spec = library, spec
        self._rotaries = [RotaryTable(rotary) for rotary in spec.rotaries]
        self._model, self._kept = model_of(spec, compute, arrays)
        self._model.input_peaks = abi.address(input_peaks)
        self._machine, self._allowance = machine_of(threads, caches()), allowance
        allowed = allowance and allowance.address
        self._handle = library.bei_encoder_create(ctypes.byref(self._model), self._machine, allowed)
        if not self._handle:
            raise SetupError("native engine: the model cannot be made; out of memory?")

    def run(self, batch: Batch) -> np.ndarray:
        """float32[B, row_size], or float32[T or M, token_size]. Raises EngineFailed."""
        shared = share(batch) if batch.row_kind == "pooled" and can_share(self._spec) else None
        if shared is None:
            return self._run(batch, np.full(len(batch), -1, np.int32), np.zeros(len(batch), np.int32))
        rows: np.ndarray = self._run(shared.batch, shared.parents, shared.offsets)[shared.rows]
        return rows

    def sharing(self, tokens: int, machine: abi.Machine | None = None) -> abi.Sharing:
        """How threads that are idle share a batch of so many tokens, here or on another machine."""
        of: abi.Sharing = self._library.bei_sharing(ctypes.byref(self._model), machine or self._machine, tokens)
        return of

    def _run(self, batch: Batch, parents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        ids, types, cu_seqlens = _int32(batch.input_ids), _int32(batch.token_types), _int32(batch.cu_seqlens)
        prompt_tokens, attended = _int32(batch.prompt_tokens), _int32(batch.attended)
        marked = None if batch.marked is None else _int32(batch.marked)
        if batch.row_kind == "tokens":
            count = len(batch.input_ids if marked is None else marked)
            run, shape = self._library.bei_encoder_tokens, (count, self._spec.token_size)
        else:
            run, shape = self._library.bei_encoder_pooled, (len(batch), self._spec.row_size)
        rows = np.empty(shape, np.float32)
        cos_sin = self._cos_sin(batch, offsets)
        packed = abi.Batch(
            input_ids=abi.address(ids),
            token_types=abi.address(types),
            cu_seqlens=abi.address(cu_seqlens),
            prompt_tokens=abi.address(prompt_tokens),
            attended=abi.address(attended),
            rotaries=abi.sequence(ctypes.c_void_p, list(map(abi.address, cos_sin))),
            parents=abi.address(parents),
            marked=abi.address(marked),
            sequences=len(batch),
            marked_count=0 if marked is None else len(marked),
        )
        status = run(self._handle, packed, abi.address(rows))
        if status:
            raise EngineFailed(f"native engine: {abi.ERRORS[status]}")
        return rows

    def _cos_sin(self, batch: Batch, offsets: np.ndarray) -> list[np.ndarray]:
        """float32[T, size] for each rotary of the spec. offsets: int[B], the position of each sequence's first
        token."""
        if not self._rotaries:
            return []
        lengths = np.repeat(offsets + batch.lengths, batch.lengths)
        positions = np.arange(len(lengths)) - np.repeat(batch.cu_seqlens[:-1] - offsets, batch.lengths)
        return [np.ascontiguousarray(table.rows(positions, lengths)) for table in self._rotaries]

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.bei_encoder_destroy(self._handle)


def _int32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.int32)
