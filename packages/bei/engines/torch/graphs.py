"""CUDA graphs: a small batch's hundreds of kernels, launched as one. A graph runs on one shape, so a batch is filled up
to the next of a few: tokens that belong to no sequence, and sequences without tokens."""

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
"""Recording begins with a wait for the whole device, which breaks what another thread is recording."""

Arrays = Mapping[str, np.ndarray]
"""Of `Inputs.tensors`."""
Forward = Callable[[Inputs], Tensor]
"""→ rows [B, …], with no copy from the host and no wait for the device."""


def bucket(tokens: int, sequences: int) -> tuple[int, int] | None:
    """The shape that a batch is filled up to: powers of two; None for one too large."""
    if tokens > LARGEST:
        return None
    return max(_SMALLEST, 1 << (tokens - 1).bit_length()), 1 << (sequences - 1).bit_length()


def fill(arrays: Arrays, tokens: int, sequences: int) -> dict[str, np.ndarray]:
    """The same batch in a larger shape. Tokens added are the first of the vocabulary; sequences added are empty."""
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
    """One shape's: the memory that it reads, and the rows that it writes."""

    def __init__(self, forward: Forward, inputs: Inputs, filled: Arrays, stream: torch.cuda.Stream, pool: Any):
        """Runs `forward` twice as it is, as CUDA asks, then records it. `filled` have the shapes, and some batch;
        `pool` is the memory of other graphs of the stream, None for memory of its own."""
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
    """One a shape, recorded when the shape is first seen; those of one stream."""

    def __init__(self, forward: Forward, stream: torch.cuda.Stream, record: Callable[..., Graph] = Graph):
        self._forward, self._stream, self._record = forward, stream, record
        self._by_shape: dict[tuple[int, int], Graph] = {}

    def run(self, inputs: Inputs) -> Tensor | None:
        """The rows of inputs on the host, [B, …]; None where they are too many."""
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
