"""The plan: an engine's file of prepared weights. It is made once, then memory-mapped and shared between processes.

Its layout: magic | offset of the table | arrays, each at a multiple of 64 bytes | table, JSON

The table is {key, arrays: [[name, dtype, shape, offset], …]}. Parts of one content have one place, as the matrices of
ALBERT's layers. A plan is named by the hash of what it is made for, and by its key, of which the weights are a part.
"""

import hashlib
import json
import logging
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from bei import files
from bei.engines.cpus import available_cpus
from bei.errors import SetupError, why
from bei.progress import Stage

log = logging.getLogger("bei")

R = TypeVar("R")

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"BEIPLAN1"
_ALIGNMENT = 64
_LARGE = 1 << 20  # bytes
_FINISHING = "plan-finish"  # the name of threads


@dataclass(frozen=True)
class Part:
    """Arrays that are made together: `make` returns them by the ends of their names, "" for `name` itself. It is called
    from several threads, for different parts. Parts of one `content` are made once; None is like no other."""

    name: str
    make: Callable[[], Mapping[str, np.ndarray]]
    content: Hashable = None


def ready(name: str, array: np.ndarray) -> Part:
    """An array that is there."""
    return Part(name, lambda: {"": array})


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of any numbers, at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    found: np.ndarray = memory[start : start + size].view(dtype).reshape(shape)
    return found


@cache
def source_hash(folder: Path, *options: str) -> str:
    """A hash of every source file under `folder`, and of the options with which they are compiled."""
    digest = hashlib.sha256(repr(options).encode())
    for file in sorted(folder.rglob("*.*")):
        if file.suffix in (".py", ".cpp", ".h"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def cached(file: Path, key: str, make: Callable[[], Iterable[Part]]) -> Mapping[str, np.ndarray]:
    """The arrays of a plan, mapped from `file`. If it is missing it is made, once by all processes that want it; its
    end comes to the disk later (`settle`). Where nothing can be written, the arrays are in memory. Logs which it was,
    and the seconds. Raises OSError."""
    started = time.monotonic()
    arrays, how = read(file, key), "mapped"
    if arrays is None:
        arrays, how = _made(file, key, make)
    size, seconds = sum(array.nbytes for array in arrays.values()) / 1e6, time.monotonic() - started
    log.info("plan %s: %.0f MB, %s in %.2f s", file, size, how, seconds)
    return arrays


def _made(file: Path, key: str, make: Callable[[], Iterable[Part]]) -> tuple[Mapping[str, np.ndarray], str]:
    try:
        unfinished = files.Claim(file.with_name(f".{file.stem}.unfinished"), lambda: _tell_of_wait(file))
    except OSError as exc:
        if exc.errno not in files.READ_ONLY:
            raise
        log.warning("%s: %s; its plan is made at every start, in memory", file.parent, why(exc))
        return in_memory(make()), "made"
    try:
        arrays = read(file, key)
        if arrays is not None:
            unfinished.close()
            return arrays, "mapped"
        arrays = _write(unfinished.descriptor, key, make())
    except BaseException:
        unfinished.close()
        raise
    _finish(unfinished, file)
    return arrays, "made"


def _tell_of_wait(file: Path) -> None:
    log.info("another process makes the plan %s: waiting for it ...", file)


def _finish(unfinished: files.Claim, file: Path) -> None:
    """Moves a plan to its place when all of it is on the disk, in a thread: the engine runs meanwhile."""

    def finish() -> None:
        try:
            unfinished.move(file)
        except OSError as exc:
            log.warning("plan %s: %s; it is made again at the next start", file, why(exc))
        finally:
            unfinished.close()

    threading.Thread(target=finish, name=_FINISHING).start()


def settle() -> None:
    """Waits until the plans that this process made are in their places, or cannot be."""
    for thread in threading.enumerate():
        if thread.name == _FINISHING:
            thread.join()


def write(file: Path, key: str, parts: Iterable[Part]) -> None:
    """Raises OSError."""
    with files.replacing(file) as unfinished, unfinished.open("r+b") as out:
        _write(out.fileno(), key, parts)


def temporary(folder: Path, parts: Iterable[Part]) -> Mapping[str, np.ndarray]:
    """The arrays in a file of `folder` that has no name, or in memory where nothing can be written. Raises OSError."""
    try:
        unnamed = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed below, out of this `try`
    except OSError as exc:
        if exc.errno not in files.READ_ONLY:
            raise
        return in_memory(parts)
    with unnamed:
        return _write(unnamed.fileno(), "", parts)


def in_memory(parts: Iterable[Part]) -> Mapping[str, np.ndarray]:
    """The arrays of all parts, each made by one of as many threads as there are processors."""
    with ThreadPoolExecutor(available_cpus(), "plan") as pool:
        made = _results([pool.submit(_arrays_of, part) for part in parts])
        return {name: array for arrays in made for name, array in arrays}


def _results(jobs: Sequence[Future[R]]) -> Iterator[R]:
    """Of all parts in their order, with a bar. Raises what making or writing one of them raises."""
    try:
        with Stage("packing", len(jobs), " parts") as stage:
            for job in jobs:
                yield job.result()
                stage.add(1)
    finally:
        for job in jobs:
            job.cancel()


def _arrays_of(part: Part) -> list[tuple[str, np.ndarray]]:
    """By their whole names, each at a multiple of 64 bytes."""
    return [(_name(part, end), _to_aligned(array)) for end, array in part.make().items()]


def _name(part: Part, end: str) -> str:
    return f"{part.name}.{end}" if end else part.name


def _to_aligned(array: np.ndarray) -> np.ndarray:
    if array.ctypes.data % _ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    copied = aligned(array.shape, array.dtype)
    copied[...] = array
    return copied


def _write(descriptor: int, key: str, parts: Iterable[Part]) -> Mapping[str, np.ndarray]:
    """Writes a plan to a file that is empty, by as many threads as there are processors; returns its arrays, mapped.
    Raises OSError."""
    writing = _Writing(descriptor)
    named: list[Part] = []
    jobs: list[Future[list[_Place]]] = []
    known: dict[Hashable, Future[list[_Place]]] = {}
    with ThreadPoolExecutor(available_cpus(), "plan") as pool:
        for part in parts:
            content = object() if part.content is None else part.content
            if content not in known:
                known[content] = pool.submit(writing.write, len(known), part)
            named.append(part)
            jobs.append(known[content])
        made = zip(named, _results(jobs), strict=True)
        places = [(_name(part, end), *place) for part, written in made for end, *place in written]
    table = json.dumps({"key": key, "arrays": places}).encode()
    _write_at(descriptor, memoryview(table), writing.end)
    _write_at(descriptor, memoryview(_HEADER.pack(_MAGIC, writing.end)), 0)
    arrays = _mapped(descriptor, key)
    if arrays is None:
        raise SetupError("a plan that was just written is none; is the disk sound?")
    return arrays


class _Writing:
    """Makes and writes parts. Their places are in their order, in whatever order they are made."""

    def __init__(self, descriptor: int):
        self._descriptor, self._turns = descriptor, threading.Condition()
        self._turn, self._failed = 0, False
        self.end = _ALIGNMENT

    def write(self, turn: int, part: Part) -> list["_Place"]:
        """The places of a part's arrays. Raises what `part.make` does, and OSError."""
        try:
            arrays = part.make()
            with self._turns:
                self._turns.wait_for(lambda: self._turn == turn or self._failed)
                places = [self._place(end, array) for end, array in arrays.items()]
                self._turn += 1
                self._turns.notify_all()
            for place, array in zip(places, arrays.values(), strict=True):
                if not self._failed:
                    _write_at(self._descriptor, _content(array), place.offset)
            return places
        except BaseException:
            with self._turns:
                self._failed = True
                self._turns.notify_all()
            raise

    def _place(self, end: str, array: np.ndarray) -> "_Place":
        offset, size = self.end, array.nbytes
        self.end += size + -size % _ALIGNMENT
        return _Place(end, array.dtype.name, array.shape, offset)


class _Place(NamedTuple):
    """Where an array lies; its name ends so."""

    end: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _content(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Raises OSError. The room is asked for first: ext4 takes a third of the time for that."""
    if content.nbytes >= _LARGE and hasattr(os, "posix_fallocate"):
        with suppress(OSError):  # a file system that cannot, or has no room: then writing says so
            os.posix_fallocate(descriptor, offset, content.nbytes)
    while content:
        count = os.pwrite(descriptor, content, offset)
        content, offset = content[count:], offset + count


def read(file: Path, key: str) -> Mapping[str, np.ndarray] | None:
    """The arrays by name, mapped read-only. None if the file is missing, truncated, not a plan, of another key, or may
    have been written by others."""
    with suppress(OSError), files.opened(file) as opened:
        return None if opened is None else _mapped(opened.fileno(), key)
    return None


def _mapped(descriptor: int, key: str) -> Mapping[str, np.ndarray] | None:
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        magic, end = _HEADER.unpack(mapped[: _HEADER.size])
        table = json.loads(mapped[end:])
        if magic != _MAGIC or table["key"] != key:
            return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, IndexError, struct.error):
        return None
    return {
        name: np.frombuffer(mapped, dtype, int(np.prod(shape)), offset).reshape(shape)
        for name, dtype, shape, offset in table["arrays"]
    }
