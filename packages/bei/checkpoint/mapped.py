"""The tensors of a safetensors file, mapped into memory and not copied.

Its layout: the header's size, 8 bytes | the header, JSON: name → dtype, shape, data_offsets | data
"""

import json
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np

_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn},
}


class MappedFile:
    """A file that tensors.scan has found whole."""

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            self._header, self._start = json.loads(opened.read(size)), 8 + size
            self._bytes = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor, read-only. It is mapped for as long as the array lives."""
        of = self._header[name]
        begin, end = of["data_offsets"]
        content = self._bytes[self._start + begin : self._start + end]
        found: np.ndarray = content.view(_TYPES[of["dtype"]]).reshape(of["shape"])
        return found
