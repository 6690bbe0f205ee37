"""Batches on the GPU, each on a stream of its own: pinned memory, one copy there, one back, nothing waited for between.

While one thread waits for its rows, another lays its batch out and queues its kernels: the GPU always has the next.
"""

import queue

import numpy as np
import torch

from bei.engines.base import Batch
from bei.engines.torch.graphs import Graphs
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.model import Model


class CUDAStreams:
    """As many batches at once as there are streams, from any thread."""

    def __init__(self, model: Model, count: int):
        torch.cuda.synchronize()  # streams of their own do not wait for the one that has made the weights
        self._free: queue.SimpleQueue[_Stream] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(_Stream(model))

    def run(self, batch: Batch) -> np.ndarray:
        stream = self._free.get()
        try:
            return stream.run(batch)
        finally:
            self._free.put(stream)


class _Stream:
    def __init__(self, model: Model):
        self._model, self._stream = model, torch.cuda.Stream()
        self._graphs = Graphs(lambda inputs: model(inputs, "pooled"), self._stream)

    def run(self, batch: Batch) -> np.ndarray:
        model = self._model
        inputs = Inputs.of(batch, model.spec)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            rows = None
            if batch.row_kind == "pooled" and not model.asks_the_host(inputs):
                rows = self._graphs.run(inputs)
            if rows is None:
                rows = model(inputs.on(model.device), batch.row_kind)
            host = torch.empty(rows.shape, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            self._stream.synchronize()
        return inputs.unsorted(host.numpy(), batch.row_kind)
