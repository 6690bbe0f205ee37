"""Files that are there whole or not at all, and a cache that nobody else can have written to.

A library in the cache is code and a plan is numbers: what others may write to is not read, whoever made it.
"""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache as once
from pathlib import Path
from typing import BinaryIO, Literal, TextIO
from uuid import uuid4

from bei.errors import SetupError, why

log = logging.getLogger("bei")

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
SHARED = 0o666
"""The mode of files that are the user's, less the umask."""


@contextmanager
def replacing(place: Path, folder: Path | None = None, mode: int = _PRIVATE_FILE) -> Iterator[Path]:
    """A new file to write in `folder`, or beside `place`; then on disk, and in its place once it is whole. Processes
    that start at once each write one, and the last counts. Nothing is left of one that fails. Raises OSError."""
    unfinished = (folder or place.parent) / f".{uuid4().hex}.unfinished"
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield unfinished
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(place)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """The same for a new folder; of processes that start at once the first counts."""
    unfinished = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    try:
        yield unfinished
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def cache(root: Path, name: str) -> Iterator[Path]:
    """The folder `name` of the cache at `root`, made where it is missing. Where others may write to either, there is a
    line that says so, and the folder is one of ours among the system's temporary files. Raises SetupError for it, and
    for all that cannot be written meanwhile."""
    root = root.expanduser().absolute()
    try:
        make_folder(root / name)
        yield root / name if _is_ours(root) and _is_ours(root / name) else _temporary(name)
    except OSError as exc:
        raise SetupError(f"{exc.filename or root}: {why(exc)}; set BEI_CACHE_DIR to a folder with room") from None


def _temporary(name: str) -> Path:
    root = Path(tempfile.gettempdir()).absolute() / f"bei-{os.geteuid()}"
    make_folder(root / name)
    fault = "is a link" if root.is_symlink() else _fault(root.stat()) or _fault((root / name).stat())
    if fault:
        raise SetupError(f"{root} {fault}; set BEI_CACHE_DIR to a folder of your own")
    return root / name


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO | None]:
    """A file to read, which nobody but we (or root) can have written; None for one that is missing or another's. What
    is checked is what is read, wherever its name leads a moment later."""
    if not is_ours(file):
        yield None
        return
    with file.open("rb") as found:
        yield found if _warned(file, os.fstat(found.fileno())) else None


def is_ours(file: Path) -> bool:
    """Whether it is there, in a folder, and nobody but we (or root) can have written to them; else there is a line."""
    return file.exists() and _is_ours(file.parent) and _is_ours(file)


Mode = Literal["r", "w", "a", "r+", "a+"]


def open_unlinked(file: Path, mode: Mode) -> TextIO:
    """A file, opened as `open` does, but where it is a link to another: that raises OSError."""
    return open(file, mode, errors="replace", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, SHARED))


def make_folder(folder: Path) -> None:
    """With what leads to it, each for us alone where it is new. Raises OSError."""
    if not folder.exists():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(_PRIVATE_FOLDER)


@once
def _warn(place: Path, fault: str) -> None:
    log.warning("%s is not used: it %s", place, fault)


def _is_ours(place: Path) -> bool:
    """Itself, and where it is a link."""
    return _warned(place, place.lstat(), place.stat())


def _warned(place: Path, *found: os.stat_result) -> bool:
    """Whether it is ours alone; there is a line where it is not."""
    fault = next(filter(None, map(_fault, found)), None)
    if fault is not None:
        _warn(place, fault)
    return fault is None


def _fault(found: os.stat_result) -> str | None:
    """Why others may have made it; a link has no mode of its own."""
    if found.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {found.st_uid}"
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(found.st_mode)
    return "may be written to by others: chmod go-w" if writable else None
