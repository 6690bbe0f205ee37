"""Files that are there whole or not at all, and a cache that nobody else can have written to.

A library in the cache is code, and a plan is numbers. A file that others may write to is not read, whoever made it.
"""

import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache as once
from pathlib import Path
from typing import BinaryIO, Literal, TextIO
from uuid import uuid4

from bei.errors import SetupError, short, why

log = logging.getLogger("bei")

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
SHARED = 0o666
"""The mode of files for the user, less the umask."""


@contextmanager
def replacing(place: Path, folder: Path | None = None, mode: int = _PRIVATE_FILE) -> Iterator[Path]:
    """A new file to write in `folder`, or beside `place`; when it is whole, it is synced and renamed to `place`.
    Processes that do this at once each write their own, and the last one remains. A failed write leaves nothing. Raises
    OSError."""
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


READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""The errors of writing where that is not permitted."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


class Claim:
    """A new file to write at `place`, which one process has at a time. If another one has it, `tell` is called, and
    then this waits until that one has moved the file, or has closed it, or died. Where files cannot be locked, each
    process has a file of its own. Raises OSError."""

    def __init__(self, place: Path, tell: Callable[[], None]):
        self._unmoved: Path | None = place
        opened = None
        while opened is None:
            opened = self._claimed(place, tell)
        self.descriptor = opened
        os.truncate(opened, 0)

    def _claimed(self, place: Path, tell: Callable[[], None]) -> int | None:
        """A descriptor of the file with its lock; None if it is no longer at its place."""
        opened = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _PRIVATE_FILE)
        try:
            _lock(opened, tell)
            if _is_at(opened, place):
                return opened
        except OSError as exc:
            os.close(opened)
            if exc.errno not in _NO_LOCKS:
                raise
            self._unmoved = place.with_name(f".{uuid4().hex}.unfinished")
            return os.open(self._unmoved, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
        os.close(opened)
        return None

    def move(self, place: Path) -> None:
        """Moves the file when all of it is on the disk. Raises OSError."""
        os.fsync(self.descriptor)
        if self._unmoved is not None:
            self._unmoved.replace(place)
        self._unmoved = None

    def close(self) -> None:
        """Removes the file, unless it was moved, and gives the place to the next."""
        if self._unmoved is not None:
            self._unmoved.unlink(missing_ok=True)
        with suppress(OSError):  # where files cannot be locked
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # a mapping has a copy of the descriptor, with its lock
        os.close(self.descriptor)


def _lock(descriptor: int, tell: Callable[[], None]) -> None:
    """Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), place.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """The same for a new folder; of several processes at once the first one remains."""
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


def expanded(path: Path | str) -> Path:
    """With the folder that a `~` at its beginning stands for. Raises SetupError if that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SetupError(f"{short(str(path))}: the home folder is unknown; write the whole path") from None


@contextmanager
def cache(root: Path, name: str) -> Iterator[Path]:
    """The folder `name` of the cache at `root`, made if it is missing. If others may write to either, a line in the log
    says so, and a private folder among the system's temporary files is used. Raises SetupError for that folder, and for
    errors of writing inside the block."""
    root = expanded(root).absolute()
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
    """A file to read that only we (or root) can have written; None for a missing file, or one of another user. The
    checked file is the one that is read, wherever its name leads a moment later."""
    if not is_ours(file):
        yield None
        return
    with file.open("rb") as found:
        yield found if _warned(file, os.fstat(found.fileno())) else None


def is_ours(file: Path) -> bool:
    """Whether the file is there and only we (or root) can have written to it and its folder; if not, a line in the log
    says why."""
    return file.exists() and _is_ours(file.parent) and _is_ours(file)


Mode = Literal["r", "w", "a", "r+", "a+"]


def open_unlinked(file: Path, mode: Mode) -> TextIO:
    """Opens a file as `open` does; raises OSError if it is a link."""
    return open(file, mode, errors="replace", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, SHARED))


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents; new ones are private. Raises OSError."""
    if not folder.exists():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(_PRIVATE_FOLDER)


@once
def _warn(place: Path, fault: str) -> None:
    log.warning("%s is not used: it %s", place, fault)


def _is_ours(place: Path) -> bool:
    """Whether the file itself, and the link to it, are ours alone."""
    return _warned(place, place.lstat(), place.stat())


def _warned(place: Path, *found: os.stat_result) -> bool:
    """Whether it is ours alone; if not, a line in the log says why."""
    fault = next(filter(None, map(_fault, found)), None)
    if fault is not None:
        _warn(place, fault)
    return fault is None


def _fault(found: os.stat_result) -> str | None:
    """The reason why others may have written it; None without one. A link has no mode of its own."""
    if found.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {found.st_uid}"
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(found.st_mode)
    return "may be written to by others: chmod go-w" if writable else None
