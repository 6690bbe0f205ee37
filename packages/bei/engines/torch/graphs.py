"""CUDA graphs: the hundreds of kernels of a small batch, launched as one. A graph has a fixed shape, so a batch is
padded to the next of a few shapes: with tokens that belong to no sequence, and with empty sequences."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bei.engines.torch.inputs import Inputs, to_pinned

LARGEST = 2048  # tokens; a larger batch computes for longer than its kernels take to launch
_SMALLEST = 16
_RECORDING = threading.Lock()
"""Recording first synchronizes the whole device, which would break a recording of another thread."""

Arrays = Mapping[str, np.ndarray]
"""Of `Inputs.tensors`."""
Forward = Callable[[Inputs], Tensor]
"""→ rows [B, …], with no copy from the host and no wait for the device."""


def bucket(tokens: int, sequences: int) -> tuple[int, int] | None:
    """The shape to which a batch is padded, powers of two; None for a batch that is too large."""
    if tokens > LARGEST:
        return None
    return max(_SMALLEST, 1 << (tokens - 1).bit_length()), 1 << (sequences - 1).bit_length()


def fill(arrays: Arrays, tokens: int, sequences: int) -> dict[str, np.ndarray]:
    """The same batch in a larger shape. Added tokens have id 0; added sequences are empty."""
    of_sequences = {"lengths", "skipped"}
    filled = {}
    for name, array in arrays.items():
        if name == "cu_seqlens":
            filled[name] = np.pad(array, (0, sequences + 1 - len(array)), mode="edge")
        else:
            more = (sequences if name in of_sequences else tokens) - len(array)
            filled[name] = np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))
    return filled


class Graph:
    """The graph of one shape, with the memory that it reads and the rows that it writes."""

    def __init__(self, forward: Forward, inputs: Inputs, filled: Arrays, stream: torch.cuda.Stream, pool: Any):
        """Runs `forward` twice, as CUDA requires, then records it. `filled` is a batch of the shape; `pool` is the
        memory of the stream's other graphs, None for memory of its own."""
        block, views = to_pinned(filled, pin=True)
        self._block = block.to("cuda")
        inputs = replace(inputs, tensors=views(self._block))
        for _ in range(2):
            forward(inputs)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._rows = forward(inputs)
        self._graph, self.pool = graph, graph.pool()

    def __call__(self, filled: Arrays) -> Tensor:
        """The rows of another batch of that shape; valid until the stream's next graph runs."""
        block, _ = to_pinned(filled, pin=True)
        self._block.copy_(block, non_blocking=True)
        self._graph.replay()
        return self._rows


class Graphs:
    """The graphs of one stream, one per shape, each recorded when its shape first occurs."""

    def __init__(self, forward: Forward, stream: torch.cuda.Stream, record: Callable[..., Graph] = Graph):
        self._forward, self._stream, self._record = forward, stream, record
        self._by_shape: dict[tuple[int, int], Graph] = {}

    def run(self, inputs: Inputs) -> Tensor | None:
        """The rows of inputs on the host, [B, …]; None if the batch is too large."""
        count = len(inputs["lengths"])
        shape = bucket(len(inputs["ids"]), count)
        if shape is None:
            return None
        filled = fill({name: tensor.numpy() for name, tensor in inputs.tensors.items()}, *shape)
        if shape not in self._by_shape:
            pool = next((graph.pool for graph in self._by_shape.values()), None)
            whole = replace(inputs, longest=shape[0])
            self._by_shape[shape] = self._record(self._forward, whole, filled, self._stream, pool)
        return self._by_shape[shape](filled)[:count]
