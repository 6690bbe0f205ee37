"""Things that one worker makes for all workers of a run: folders that are written once, and servers."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock


def once(folder: Path, write: Callable[[Path], object]) -> Path:
    """`folder`, which `write` fills for whoever asks first; others wait, and find it whole."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def shared(place: Path, start: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """The value of `start`, for every process that asks at the same `place`. The first one enters it, and leaves it
    when no other uses it any more."""
    with ExitStack() as ours, Path(f"{place}.users").open("w") as users:
        with FileLock(f"{place}.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            first = not place.exists()
            if first:
                place.write_text(ours.enter_context(start()))
            given = place.read_text()
        yield given
        if first:
            fcntl.flock(users, fcntl.LOCK_EX)
            place.unlink()
            ours.close()
