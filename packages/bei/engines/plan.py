"""The plan: an engine's file of prepared weights. It is made once, then memory-mapped and shared between processes.

Its layout: magic | offset of the table | arrays, each at a multiple of 64 bytes | table, JSON

The table is {key, arrays: [[name, dtype, shape, offset], …]}. Arrays of one content have one place, as the matrices of
ALBERT's layers.
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
from typing import BinaryIO

import numpy as np

from bei import files
from bei.errors import SetupError

log = logging.getLogger("bei")

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"BEIPLAN1"
_ALIGNMENT = 64
_PIECE = 1 << 20  # bytes that are compared at a time


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
    with files.replacing(file) as unfinished, unfinished.open("w+b") as out:
        table, places = [], _Places(out)
        out.seek(_ALIGNMENT)
        for name, array in arrays:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # errors of tofile give no reason
            offset = places.find(content)
            if offset is None:
                offset = places.add(content)
            table.append([name, array.dtype.name, array.shape, offset])
        end = out.tell()
        out.write(json.dumps({"key": key, "arrays": table}).encode())
        out.seek(0)
        out.write(_HEADER.pack(_MAGIC, end))


class _Places:
    """Where the arrays of a file are that is being written. Those that are alike at both ends are compared whole."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._offsets: dict[tuple[int, bytes, bytes], list[int]] = {}

    def find(self, content: memoryview) -> int | None:
        """The offset of an array of this content."""
        end = self._out.tell()
        try:
            return next((at for at in self._offsets.get(_ends(content), ()) if self._holds(at, content)), None)
        finally:
            self._out.seek(end)

    def add(self, content: memoryview) -> int:
        """Write it at the end; returns its offset."""
        offset = self._out.tell()
        self._out.write(content)
        self._out.write(bytes(-self._out.tell() % _ALIGNMENT))
        self._offsets.setdefault(_ends(content), []).append(offset)
        return offset

    def _holds(self, offset: int, content: memoryview) -> bool:
        self._out.seek(offset)
        pieces = (content[at : at + _PIECE] for at in range(0, len(content), _PIECE))
        return all(self._out.read(len(piece)) == piece for piece in pieces)


def _ends(content: memoryview) -> tuple[int, bytes, bytes]:
    return len(content), bytes(content[:_ALIGNMENT]), bytes(content[-_ALIGNMENT:])


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
