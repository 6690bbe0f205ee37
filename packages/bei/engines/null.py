"""Hashes ids into rows: the whole stack without a model, for tests and for measuring everything but the model."""

import numpy as np

from bei.checkpoint.load import Checkpoint
from bei.engines.base import DEFAULTS, Batch, EngineFacts, EngineOptions


class NullEngine:
    facts = EngineFacts(
        name="null", device="cpu", precision="fp32", reason="no model is run", streams=1, token_budget=1 << 20
    )
    fault = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions = DEFAULTS):
        spec = checkpoint.spec
        self._tokens = np.sin(
            np.outer(np.arange(1, spec.vocab_size + 1), 1 + np.arange(spec.token_size)), dtype=np.float32
        )
        self._width = spec.row_size

    def run(self, batch: Batch) -> np.ndarray:
        states: np.ndarray = self._tokens[batch.input_ids]
        if batch.row_kind == "tokens":
            return states if batch.marked is None else states[batch.marked]
        sums = np.add.reduceat(states, batch.cu_seqlens[:-1]) / batch.lengths[:, None]
        return np.resize(sums, (len(batch), self._width)).astype(np.float32)
