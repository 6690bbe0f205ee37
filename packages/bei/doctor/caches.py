"""The caches: how much each one holds, how much of it no start will use again, and its removal."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bei.engines.native import library
from bei.engines.native.levels import LEVELS
from bei.errors import SetupError, why
from bei.files import expanded

NAMES = {
    "native": "compiled libraries and plans",
    "tensorrt": "plans of TensorRT",
    "torch": "compiled kernels",
    "checkpoints": "downloads",
    "conversions": "notes about the hub's conversions",
    "adapted": "adapters on their bases",
    "tokenizers": "built tokenizer.json",
    "bulk": "fingerprints of weights",
}
"""The folders of the cache, with what they hold."""
_DAY = 86_400.0
_ABANDONED = 3_600.0  # seconds after which an unfinished file belongs to a process that died


@dataclass(frozen=True)
class Entry:
    """A file or folder of a cache. `unused` is the reason why no start is likely to use it; None if one may."""

    place: Path
    size: int
    unused: str | None


@dataclass(frozen=True)
class Cache:
    name: str
    entries: Sequence[Entry]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def prunable(self) -> Sequence[Entry]:
        return [entry for entry in self.entries if entry.unused]


def read(cache_dir: Path, unused_days: float, now: float | None = None) -> list[Cache]:
    """Every cache that is there. An entry is unused if it was not read for so many days, if other sources compiled it,
    or if it is the unfinished file of a process that died."""
    root, now = expanded(cache_dir).absolute(), time.time() if now is None else now
    folders = [(name, root / name) for name in NAMES]
    return [
        Cache(name, [_entry(place, unused_days, now) for place in sorted(folder.iterdir())])
        for name, folder in folders
        if folder.is_dir() and not folder.is_symlink()
    ]


def prune(caches: Sequence[Cache]) -> int:
    """Removes the unused entries, and returns their bytes. A process that has mapped one keeps it until it ends. Raises
    SetupError."""
    freed = 0
    for entry in (entry for cache in caches for entry in cache.prunable):
        try:
            if entry.place.is_dir() and not entry.place.is_symlink():
                shutil.rmtree(entry.place)
            else:
                entry.place.unlink(missing_ok=True)
        except OSError as exc:
            raise SetupError(f"{entry.place} cannot be removed: {why(exc)}") from None
        freed += entry.size
    return freed


def _entry(place: Path, unused_days: float, now: float) -> Entry:
    found = [of.lstat() for of in _files(place)]
    used = max([max(of.st_atime, of.st_mtime) for of in found] or [place.lstat().st_mtime])
    return Entry(place, sum(of.st_size for of in found), _unused(place.name, now - used, unused_days))


def _files(place: Path) -> Iterator[Path]:
    """The files below a folder, links themselves in place of what they lead to."""
    if place.is_symlink() or not place.is_dir():
        yield place
    else:
        yield from (file for file in place.rglob("*") if file.is_symlink() or not file.is_dir())


def _unused(name: str, seconds: float, unused_days: float) -> str | None:
    if name.startswith(".partial-") or name.endswith(".unfinished"):
        return "unfinished" if seconds > _ABANDONED else None
    if name.startswith("bei-") and name.endswith(".so") and name not in map(library.name_of, LEVELS):
        return "another version"
    return f"not read for {seconds / _DAY:.0f} days" if seconds > unused_days * _DAY else None
