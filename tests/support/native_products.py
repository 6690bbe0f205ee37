"""A product of matrices by the native engine, and its allowed distance from the exact one."""

import ctypes
from pathlib import Path

import numpy as np

from bei.engines.native import abi, library
from bei.engines.native.levels import Level
from bei.engines.native.model import linear_of
from bei.engines.native.panels import Rows, pack_linear

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "int8": 2.5e-2}


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
