"""The native engine on ARM64: `runner.py FOLDER CACHE [LEVEL]`, by the interpreter of environment.py, without torch.

FOLDER has a folder for each case (cases.py), with its checkpoint and `runs.json`. The results of a case are written
beside it as `NAME.npz`, and `level` is the level of instructions: LEVEL, or the processor's fastest.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bei.architectures.spec import Pooling
from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import Level, level, named
from tests.support.native_products import TOLERANCE, linear_error


def results(folder: Path, cache_dir: Path, isa: Level) -> dict[str, np.ndarray]:
    told = json.loads((folder / "runs.json").read_text())
    checkpoint = read(folder, folder.name, **told["reading"])

    @cache
    def engine(precision: str, threads: int, modes: tuple[str, ...]) -> NativeEngine:
        options = EngineOptions(precision=precision, threads=threads, cache_dir=cache_dir)
        return NativeEngine(_pooling(checkpoint, modes), options, isa=isa)

    def run(of: Mapping[str, Any]) -> np.ndarray:
        batch = Batch.pack(of["ids"], prompt_tokens=of["prompts"], row_kind=of["rows"])
        return engine(of["precision"], of["threads"], tuple(of["modes"])).run(batch)

    return {name: run(of) for name, of in told["runs"].items()}


def _pooling(checkpoint: Checkpoint, modes: tuple[str, ...]) -> Checkpoint:
    """The checkpoint, or one that pools by these modes."""
    if not modes:
        return checkpoint
    return replace(checkpoint, spec=replace(checkpoint.spec, pooling=Pooling(modes, include_prompt=False)))


def products(cache_dir: Path, isa: Level) -> dict[str, np.ndarray]:
    """The errors of products of random sizes, as shares of what is allowed."""
    rng, errors = np.random.default_rng(0), {}
    for precision, tolerance in TOLERANCE.items():
        sizes = rng.integers((1, 1, 1), (40, 90, 150), (25, 3))
        errors[precision] = [
            linear_error(*map(int, size), seed, precision, isa, cache_dir) / tolerance
            for seed, size in enumerate(sizes)
        ]
    return {precision: np.array(found) for precision, found in errors.items()}


def main(folder: str, cache_dir: str, name: str = "") -> None:
    isa = named(name)[0] if name else level()
    (Path(folder) / "level").write_text(isa.name)
    np.savez(Path(folder) / "products.npz", **products(Path(cache_dir), isa))
    for of in sorted(filter(Path.is_dir, Path(folder).iterdir())):
        np.savez(of.with_name(f"{of.name}.npz"), **results(of, Path(cache_dir), isa))


if __name__ == "__main__":
    main(*sys.argv[1:])
