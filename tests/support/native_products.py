"""A product of matrices by the native engine, and its allowed distance from the exact one."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from bei.engines.native import abi, library
from bei.engines.native.abi import Layout
from bei.engines.native.levels import Level
from bei.engines.native.model import linear_of
from bei.engines.native.panels import Rows, pack_linear

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "int8": 2.5e-2, "int4": 0.12}
GROUP = 32
LOADED: list[ctypes.CDLL] = []
"""The library, while the fixture `packs` has one: hypothesis calls a test many times."""


def run_linear(weight, bias, x, precision, activation, isa, folder: Path, hadamard: int = 1) -> np.ndarray:
    outputs, inputs = weight.shape
    folder.mkdir(parents=True, exist_ok=True)
    loaded = library.load(isa, folder)
    layout = library.layouts(loaded)[precision]
    arrays = pack_linear(loaded, Rows.of([weight]), bias, precision, layout, None, hadamard)
    linear = linear_of(arrays, inputs, outputs, precision, activation, hadamard)
    out = np.empty((len(x), outputs), np.float32)
    assert loaded.bei_linear(ctypes.byref(linear), abi.address(x), len(x), abi.address(out)) == 0
    return out


def linear_error(
    rows: int, inputs: int, outputs: int, seed: int, precision: str, isa: Level, cache: Path, hadamard: int = 1
) -> float:
    """The largest error of a product of random numbers, as a share of the sum of their magnitudes."""
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((outputs, inputs), np.float32), rng.standard_normal((rows, inputs), np.float32)
    bias = rng.standard_normal(outputs, np.float32)
    y = run_linear(weight, bias, x, precision, "identity", isa, cache / "native", hadamard)
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1) + 1
    return (np.abs(y - (x @ weight.T + bias)) / size).max()


def outlier_errors(inputs: int, hadamard: int, isa: Level, cache: Path) -> list[float]:
    """The mean errors of a product in int8 whose inputs have outliers, without and with rotated inputs."""
    rng = np.random.default_rng(inputs)
    weight, x = rng.standard_normal((40, inputs), np.float32), rng.standard_normal((9, inputs), np.float32)
    x[:, 1] *= 100
    return [
        float(
            np.abs(run_linear(weight, None, x, "int8", "identity", isa, cache / "native", size) - x @ weight.T).mean()
        )
        for size in (1, hadamard)
    ]


def codes_of(
    panels: np.ndarray, columns: int, inputs: int, layout: Layout
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a matrix in int4: the codes, uint8[columns, inputs], and scales and offsets, float32[columns, groups]. By
    cpp/kernel/int4.h, number by number."""
    groups, together, lanes = -(-inputs // GROUP), layout.row_group, layout.lanes
    codes = np.zeros((columns, groups * GROUP), np.uint8)
    scales, offsets = np.zeros((2, columns, groups), np.float32)
    place, halves, i = 0, min(together, 2), np.arange(GROUP)
    vectors = 8 // halves
    for first in range(0, columns, layout.panel):
        width = min(layout.panel, columns - first)
        for group in range(groups):
            pairs, place = panels[place : place + width], place + width
            nibbles, place = panels[place : place + width * GROUP // 8], place + width * GROUP // 8
            of = slice(first, first + width)
            scales[of, group] = (pairs << 16).view(np.float32)
            offsets[of, group] = (pairs & 0xFFFF0000).view(np.float32)
            for j in range(width):
                at = (i // together * width + j) * together + i % together
                word, half = at // halves, at % halves
                found = nibbles[word // lanes // vectors * lanes + word % lanes]
                shifted = found >> (4 * (word // lanes % vectors) + 16 * half)
                codes[first + j, group * GROUP : (group + 1) * GROUP] = shifted & 15
    assert place == len(panels)
    return codes[:, :inputs], scales, offsets


def dequantized(packed: Mapping[str, np.ndarray], outputs: int, inputs: int, layout: Layout) -> np.ndarray:
    """The numbers that a matrix in int4 stands for, float32[outputs, inputs]."""
    codes, scales, offsets = codes_of(packed["panels"], len(packed["bias"]), inputs, layout)
    of = np.arange(inputs) // GROUP
    return (codes * scales[:, of] + offsets[:, of])[:outputs]


def error_of_unpacking(rows: int, inputs: int, outputs: int, seed: int, isa: Level, cache: Path) -> float:
    """The largest difference of a product in int4 from that with the matrix that it stands for, of inputs as the level
    multiplies them; as a share of the sum of the magnitudes."""
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((outputs, inputs), np.float32), rng.standard_normal((rows, inputs), np.float32)
    bias = rng.standard_normal(outputs, np.float32)
    loaded = library.load(isa, cache / "native")
    layout = library.layouts(loaded)["int4"]
    stands_for = dequantized(pack_linear(loaded, Rows.of([weight]), None, "int4", layout), outputs, inputs, layout)
    read = x.astype(ml_dtypes.bfloat16) if isa.has_bf16 else x
    y = run_linear(weight, bias, x, "int4", "identity", isa, cache / "native")
    exact = read.astype(np.float64) @ stands_for.T + bias
    return (np.abs(y - exact) / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1) + 1)).max()
