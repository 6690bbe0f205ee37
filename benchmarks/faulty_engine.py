"""The native engine with faults that a request triggers: token ids that no text has, then the id of the fault.

A fault hits the batch that contains the request, other requests included. This engine replaces the native one in a
process that has `faulty_site` first on its path, and in its children.
"""

import signal
import time

import numpy as np

from bei.engines.base import Batch
from bei.engines.native.engine import NativeEngine

FAULTS = ("exception", "memory", "nan", "stall", "crash")
STALL = 2.0  # seconds
_MARK = (17, 71, 17, 71)  # unused words of BERT's vocabulary
_FIRST = 2  # the id of the first fault


def poison(fault: str) -> list[int]:
    """The token ids that trigger a fault."""
    return [*_MARK, _FIRST + FAULTS.index(fault)]


class FaultyEngine(NativeEngine):
    def run(self, batch: Batch) -> np.ndarray:
        asked = _asked(batch)
        if "exception" in asked:
            raise RuntimeError("a fault was asked for")
        if "memory" in asked:
            raise MemoryError
        if "stall" in asked:
            time.sleep(STALL)
        if "crash" in asked:
            signal.raise_signal(signal.SIGSEGV)
        rows = super().run(batch)
        if "nan" in asked:
            rows = rows.copy()
            rows[asked["nan"]] = np.nan
        return rows


def _asked(batch: Batch) -> dict[str, int]:
    """The faults in a batch, and the sequence that contains each."""
    ids = batch.input_ids
    starts = np.flatnonzero(ids[: -len(_MARK)] == _MARK[0])
    found = [start for start in starts if tuple(ids[start : start + len(_MARK)]) == _MARK]
    sequences = np.searchsorted(batch.cu_seqlens, found, side="right") - 1
    faults = [FAULTS[ids[start + len(_MARK)] - _FIRST] for start in found]
    return dict(zip(faults, sequences.tolist(), strict=True))
