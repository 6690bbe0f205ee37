"""The native engine on ARM64: `runner.py FOLDER`, by the interpreter of environment.py, without torch.

FOLDER has `sequences.json`, and a checkpoint in a folder of its name for each model. The rows are written beside it as
`NAME.npz`, and `level` is the level of instructions that the processor has.
"""

import json
import sys
from pathlib import Path

import numpy as np

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import level
from tests.support.native_products import TOLERANCE, linear_error

ALONE = 3
"""The sequence that also runs alone."""


def rows(folder: Path, sequences: list[list[int]], cache: Path) -> dict[str, np.ndarray]:
    checkpoint, found = read(folder, folder.name), {}
    for precision in ("fp32", "bf16", "int8"):
        engine = NativeEngine(checkpoint, EngineOptions(precision=precision, threads=1, cache_dir=cache))
        found[precision] = engine.run(Batch.pack(sequences))
        found[f"{precision} alone"] = engine.run(Batch.pack([sequences[ALONE]]))
        if precision == "fp32":
            found["states"] = engine.run(Batch.pack(sequences, row_kind="tokens"))
    return found


def products(cache: Path) -> dict[str, np.ndarray]:
    """The errors of products of random sizes, as shares of what is allowed."""
    rng, errors = np.random.default_rng(0), {}
    for precision, tolerance in TOLERANCE.items():
        sizes = rng.integers((1, 1, 1), (40, 90, 150), (25, 3))
        errors[precision] = [
            linear_error(*map(int, size), seed, precision, level(), cache) / tolerance
            for seed, size in enumerate(sizes)
        ]
    return {precision: np.array(found) for precision, found in errors.items()}


def main(folder: Path, cache: Path) -> None:
    sequences = json.loads((folder / "sequences.json").read_text())
    (folder / "level").write_text(level().name)
    np.savez(folder / "products.npz", **products(cache))
    for model in sorted(filter(Path.is_dir, folder.iterdir())):
        np.savez(folder / f"{model.name}.npz", **rows(model, sequences, cache))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
