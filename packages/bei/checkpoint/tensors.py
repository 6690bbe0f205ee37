"""Tensors of safetensors files under our names, read when asked for and checked before."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes  # noqa: F401  teaches numpy the dtype bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from bei.errors import SetupError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk, or rows of one from `start` on: its file, its name there, shape, and dtype (float32, float16,
    bfloat16; others as stored). `less` is a row of it that is subtracted, in float32."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    less: int | None = None

    def rows(self, start: int, stop: int, less: int | None = None) -> "Tensor":
        """Those of [start, stop) that it has."""
        count = max(0, min(stop, self.shape[0]) - start)
        return replace(self, shape=(count, *self.shape[1:]), start=start, less=less)


def scan(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of `files` by its own name. Raises SetupError for a file missing, truncated or not safetensors."""
    found = {}
    for file in files:
        try:
            with safe_open(file, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    view = opened.get_slice(name)
                    dtype = _DTYPES.get(view.get_dtype(), view.get_dtype())
                    found[name] = Tensor(file, name, tuple(view.get_shape()), dtype)
        except FileNotFoundError:
            raise SetupError(f"{file} is missing; download the checkpoint again") from None
        except SafetensorError as exc:
            raise SetupError(f"{file} is truncated or not safetensors ({exc}); download it again") from None
    return found


class Tensors(Mapping[str, np.ndarray]):
    """Our name → array. Several stored parts are concatenated along the first axis on reading."""

    def __init__(self, parts: Mapping[str, tuple[Tensor, ...]]):
        self._parts = parts

    def __getitem__(self, name: str) -> np.ndarray:
        arrays = [_read(tensor) for tensor in self._parts[name]]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def fingerprint(self, notes: Path) -> str:
        """SHA-256 of all that is read: the files' content, and which tensor is which. A file is hashed once; `notes`
        is the folder that keeps its hash for as long as the file system says that it is the same file."""
        places = {
            ours: [(part.file.name, part.name, part.start, part.less, part.shape) for part in parts]
            for ours, parts in self._parts.items()
        }
        digest = hashlib.sha256(repr(sorted(places.items())).encode())
        for file in sorted({part.file for parts in self._parts.values() for part in parts}):
            digest.update(_content_hash(file, notes).encode())
        return digest.hexdigest()


def _read(tensor: Tensor) -> np.ndarray:
    with safe_open(tensor.file, "numpy") as opened:
        stored = opened.get_slice(tensor.name)
        rows = stored[tensor.start : tensor.start + tensor.shape[0]]
        if tensor.less is None:
            return rows
        return rows.astype(np.float32) - stored[tensor.less : tensor.less + 1].astype(np.float32)


def _content_hash(file: Path, notes: Path) -> str:
    """Noted by what changes with the content: writing a file, or putting another in its place, changes its ctime."""
    stat = file.stat()
    identity = (str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    note = notes / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.sha256"
    if note.exists():
        return note.read_text()
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    with suppress(OSError):  # a folder that nobody may write to costs a second look at the file, no more
        notes.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(f".{os.getpid()}")
        unfinished.write_text(found)
        unfinished.replace(note)
    return found
