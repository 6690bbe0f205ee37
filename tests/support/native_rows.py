"""Rows of the native engine in each precision: near those in fp32, and bit for bit what they are alone."""

from pathlib import Path

import numpy as np

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from tests.support.parity import cosines

_LEAST = {"fp32": 1 - 1e-6, "bf16": 0.9995, "int8": 0.998, "int4": 0.85}
"""Median cosines: a row of random weights may forgive little."""


def check_rows(checkpoint: Checkpoint, ids: list[list[int]], cache: Path) -> None:
    """Together they are computed by three threads, and alone by one."""

    def run(precision: str, ids: list[list[int]], threads: int) -> np.ndarray:
        options = EngineOptions(precision=precision, threads=threads, cache_dir=cache)
        return NativeEngine(checkpoint, options).run(Batch.pack(ids))

    exact = run("fp32", ids, 1)
    for precision, least in _LEAST.items():
        together = run(precision, ids, 3)
        np.testing.assert_array_equal(together, np.concatenate([run(precision, [s], 1) for s in ids]))
        assert np.median(cosines(exact, together)) >= least
