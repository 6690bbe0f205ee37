"""Matrices and tables in the kernels' layout (cpp/kernel/linear.h): panels of columns, in which the operands of one
instruction are adjacent. The library packs them (cpp/kernel/pack.cpp), for any level by its layout."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from bei.engines.compute import Operands
from bei.engines.native import abi
from bei.engines.native.abi import Layout
from bei.engines.plan import aligned
from bei.errors import SetupError

_TYPES: Mapping[Operands, DTypeLike] = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "int4": np.uint32,  # words of eight (cpp/kernel/int4.h)
}
_NAMES: Mapping[np.dtype, Literal["fp32", "bf16", "fp16"]] = {
    np.dtype(np.float32): "fp32",
    np.dtype(ml_dtypes.bfloat16): "bf16",
    np.dtype(np.float16): "fp16",
}
"""The types of numbers in a checkpoint that the library reads."""
_ROW_BY_ROW = Layout(lanes=1, panel=1, word_multiple=1, row_group=1, largest=127)


@dataclass(frozen=True)
class Rows:
    """Rows of `inputs` numbers of one type, wherever each lies: uint64[count], zero for a row of zeros. `kept` owns
    them."""

    addresses: np.ndarray
    inputs: int
    stored: Operands
    kept: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, pieces: Sequence[np.ndarray]) -> "Rows":
        """pieces: [rows, inputs] each, one after another. Those of another type than float32, bfloat16 or float16, or
        of several types, become float32."""
        dtypes = {piece.dtype for piece in pieces}
        stored = _NAMES.get(dtypes.pop()) if len(dtypes) == 1 else None
        if stored is None:
            stored, pieces = "fp32", [piece.astype(np.float32) for piece in pieces]
        pieces = tuple(map(np.ascontiguousarray, pieces))
        addresses = [piece.ctypes.data + np.arange(len(piece), dtype=np.uint64) * piece.strides[0] for piece in pieces]
        return cls(np.concatenate(addresses), pieces[0].shape[1], stored, pieces)

    def interleaved(self, lanes: int) -> "Rows":
        """Gates and gated values in turn."""
        return replace(self, addresses=interleave(self.addresses, lanes))

    def filled(self, multiple: int) -> "Rows":
        """With rows of zeros up to a multiple."""
        return replace(self, addresses=np.pad(self.addresses, (0, -len(self.addresses) % multiple)))


def interleave(rows: np.ndarray, lanes: int) -> np.ndarray:
    """rows: [2 * n], n gates and then n gated values → groups of `lanes` gates and `lanes` gated values, in turn. If n
    is not a multiple of `lanes`, the last groups are filled up with zeros."""
    halves = rows.reshape(2, -1)
    padded = np.pad(halves, [(0, 0), (0, -halves.shape[1] % lanes)])
    return np.ascontiguousarray(padded.reshape(2, -1, lanes).swapaxes(0, 1).ravel())


def pack_linear(
    library: ctypes.CDLL,
    weight: Rows,
    bias: np.ndarray | None,
    operands: Operands,
    layout: Layout,
    input_peaks: np.ndarray | None = None,
    hadamard: int = 1,
) -> dict[str, np.ndarray]:
    """weight: [outputs, inputs] → panels (flat), bias float32[columns], for int8 the scale of each column and the sum
    of its bytes, and with `input_peaks` the scales of the inputs. `hadamard` inputs are rotated together. `columns` is
    `outputs` rounded up to whole vectors; added columns are zero. Raises SetupError for a lack of memory, and
    ValueError for peaks of other inputs."""
    weight = weight.filled(layout.lanes)
    columns, width = len(weight.addresses), -(-weight.inputs // layout.word_multiple) * layout.word_multiple
    numbers = columns * width
    if operands == "int4":
        numbers = numbers // 8 + numbers // layout.word_multiple  # words: codes; a scale and an offset for each group
    packed = {"panels": aligned((numbers,), _TYPES[operands])}
    if operands == "int8":
        packed |= {"scales": aligned((columns,), np.float32), "sums": aligned((columns,), np.float32)}
    if input_peaks is not None:
        if input_peaks.shape != (weight.inputs,):
            raise ValueError(f"peaks {list(input_peaks.shape)} of {weight.inputs} inputs")
        if operands != "int4":
            packed["input_scales"] = aligned((weight.inputs,), np.float32)
        input_peaks = np.ascontiguousarray(input_peaks, np.float32)
    _pack(library, weight, operands, layout, packed, input_peaks, hadamard)
    packed["bias"] = aligned((columns,), np.float32)
    packed["bias"][:] = 0
    if bias is not None:
        packed["bias"][: len(bias)] = bias
    return packed


def pack_table(library: ctypes.CDLL, table: Rows, operands: Operands) -> dict[str, np.ndarray]:
    """[rows, numbers] in the type of the operands, by the name ""; for int8 also the scale of each row. Raises
    SetupError for a lack of memory."""
    rows = len(table.addresses)
    packed = {"panels": aligned((rows, table.inputs), _TYPES[operands])}
    if operands == "int8":
        packed["scales"] = aligned((rows,), np.float32)
    _pack(library, table, operands, _ROW_BY_ROW, packed)
    packed[""] = packed.pop("panels")
    return packed


def operands_of(packed: np.ndarray) -> Operands:
    """The numbers that an array of a plan is stored in."""
    return next(name for name, dtype in _TYPES.items() if packed.dtype == dtype)


def _pack(
    library: ctypes.CDLL,
    rows: Rows,
    operands: Operands,
    layout: Layout,
    packed: Mapping[str, np.ndarray],
    input_peaks: np.ndarray | None = None,
    hadamard: int = 1,
) -> None:
    matrix = abi.Matrix(
        rows=abi.address(rows.addresses),
        input_peaks=abi.address(input_peaks),
        stored=abi.STORED[rows.stored],
        precision=abi.PRECISIONS[operands],
        inputs=rows.inputs,
        columns=len(rows.addresses),
        hadamard=hadamard,
        **{part: abi.address(packed.get(part)) for part in ("panels", "scales", "sums", "input_scales")},
    )
    status = library.bei_pack(ctypes.byref(layout), ctypes.byref(matrix))
    if status:
        raise SetupError(f"native engine: the weights cannot be packed: {abi.ERRORS[status]}")
