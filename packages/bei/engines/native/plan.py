"""The engine's file: packed weights, made once, then mapped and shared between processes, like a TensorRT plan.

magic | offset of the table | arrays, each at a multiple of 64 bytes | table, JSON

The table is {key, arrays: [[name, dtype, shape, offset], …]}.
"""

import json
import mmap
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"BEIPLAN1"
_ALIGNMENT = 64


def write(file: Path, key: str, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Atomic: processes that start at once each write, and the last rename wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".plan-", delete=False) as out:
        try:
            table = []
            out.seek(_ALIGNMENT)
            for name, array in arrays:
                table.append([name, array.dtype.name, array.shape, out.tell()])
                array.tofile(out)
                out.write(bytes(-out.tell() % _ALIGNMENT))
            end = out.tell()
            out.write(json.dumps({"key": key, "arrays": table}).encode())
            out.seek(0)
            out.write(_HEAD.pack(_MAGIC, end))
            out.flush()
            os.fsync(out.fileno())
            os.replace(out.name, file)
        except BaseException:
            os.unlink(out.name)
            raise


def read(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays by name, mapped read-only; None for a file that is missing, cut short, of another key or no plan."""
    try:
        with file.open("rb") as opened:
            magic, end = _HEAD.unpack(opened.read(_HEAD.size))
            opened.seek(end)
            table = json.loads(opened.read())
            if magic != _MAGIC or table["key"] != key:
                return None
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, struct.error):
        return None
    return {
        name: np.frombuffer(mapped, dtype, int(np.prod(shape)), offset).reshape(shape)
        for name, dtype, shape, offset in table["arrays"]
    }
