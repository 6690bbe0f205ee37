"""The peak of this machine's products on one thread: our own product of large matrices, without a layer around it."""

import ctypes
import time
from pathlib import Path

import numpy as np

from bei import files
from bei.engines.native import abi, library
from bei.engines.native.levels import level
from bei.engines.native.model import linear_of
from bei.engines.native.panels import Rows, pack_linear

_SHAPES = ((96, 1024, 4096), (96, 384, 1536), (96, 768, 3072))  # rows, inputs, outputs


class Peak:
    """Operations per second, in billions; a multiplication and an addition are two."""

    def __init__(self, precision: str, cache_dir: Path):
        with files.cache(cache_dir, "native") as folder:
            self._library = library.load(level(), folder)
        layout = library.layouts(self._library)[precision]
        self._products = []
        rng = np.random.default_rng(0)
        for rows, inputs, outputs in _SHAPES:
            weight = Rows.of([rng.standard_normal((outputs, inputs), np.float32)])
            arrays = pack_linear(self._library, weight, None, precision, layout)
            linear = linear_of(arrays, inputs, outputs, precision)
            x = rng.standard_normal((rows, inputs), np.float32)
            self._products.append((linear, x, np.empty((rows, outputs), np.float32), arrays))

    def measure(self) -> float:
        """The current speed: the fastest shape's, by the median of twenty products of each."""
        speeds = []
        for linear, x, out, _ in self._products:
            seconds = []
            for _ in range(20):
                started = time.thread_time()
                self._library.bei_linear(ctypes.byref(linear), abi.address(x), len(x), abi.address(out))
                seconds.append(time.thread_time() - started)
            speeds.append(2 * x.size * out.shape[1] / np.median(seconds) / 1e9)
        return max(speeds)
