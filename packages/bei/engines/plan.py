"""The plan: an engine's file of prepared weights. It is made once, then memory-mapped and shared between processes.

Its layout: magic | offset of the table | arrays, each at a multiple of 64 bytes | table, JSON

The table is {key, arrays: [[name, dtype, shape, offset], …]}.
"""

import hashlib
import json
import logging
import mmap
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from bei import files
from bei.errors import SetupError

log = logging.getLogger("bei")

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"BEIPLAN1"
_ALIGNMENT = 64


@cache
def source_hash(folder: Path, *options: str) -> str:
    """A hash of every source file under `folder`, and of the options with which they are compiled."""
    digest = hashlib.sha256(repr(options).encode())
    for file in sorted(folder.rglob("*.*")):
        if file.suffix in (".py", ".cpp", ".h"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def cached(file: Path, key: str, make: Callable[[], Iterable[tuple[str, np.ndarray]]]) -> Mapping[str, np.ndarray]:
    """The arrays of a plan, mapped from `file`, which is made if it is missing. Logs which it was, and the seconds."""
    started = time.monotonic()
    arrays = read(file, key)
    found = arrays is not None
    if arrays is None:
        write(file, key, make())
        arrays = written(file, key)
    megabytes, seconds = file.stat().st_size / 1e6, time.monotonic() - started
    log.info("plan %s: %.0f MB, %s in %.2f s", file, megabytes, "mapped" if found else "made", seconds)
    return arrays


def write(file: Path, key: str, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    with files.replacing(file) as unfinished, unfinished.open("wb") as out:
        table = []
        out.seek(_ALIGNMENT)
        for name, array in arrays:
            table.append([name, array.dtype.name, array.shape, out.tell()])
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # errors of tofile give no reason
            out.write(bytes(-out.tell() % _ALIGNMENT))
        end = out.tell()
        out.write(json.dumps({"key": key, "arrays": table}).encode())
        out.seek(0)
        out.write(_HEADER.pack(_MAGIC, end))


def written(file: Path, key: str) -> dict[str, np.ndarray]:
    """As `read`, for a plan that was just written. Raises SetupError if it is gone, or others may write it."""
    arrays = read(file, key)
    if arrays is None:
        raise SetupError(f"{file} was written and cannot be read; may others write in its folder?")
    return arrays


def read(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays by name, mapped read-only. None if the file is missing, truncated, not a plan, of another key, or may
    have been written by others."""
    try:
        with files.opened(file) as opened:
            if opened is None:
                return None
            magic, end = _HEADER.unpack(opened.read(_HEADER.size))
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
