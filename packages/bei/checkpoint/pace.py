"""A download goes on, or it ends: one that drips would hold a start for ever, each of its reads in time."""

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

from bei.errors import SetupError

WINDOW_SECONDS = 120
WINDOW_BYTES = 1 << 20
MOST_SECONDS = 24 * 3600
_LOOK_SECONDS = 0.5


def kept_pace(download: Callable[[], None], folder: Path, shown: str) -> None:
    """Run `download`, which writes into `folder`, in a thread, and leave it there when in WINDOW_SECONDS less than
    WINDOW_BYTES came, or it is not done after MOST_SECONDS. Raises what it raises, or SetupError."""
    done: Future[None] = Future()
    Thread(target=_settle, args=(done, download), daemon=True).start()
    begun = marked = time.monotonic()
    had = 0
    while not wait([done], _LOOK_SECONDS).done:
        now, has = time.monotonic(), _bytes_in(folder)
        had = min(had, has)  # a file that has changed at its source begins again
        if now - begun > MOST_SECONDS:
            raise SetupError(f"{shown} was not downloaded in {MOST_SECONDS / 3600:g} hours; try it again")
        if now - marked > WINDOW_SECONDS:
            came = has - had
            if came < WINDOW_BYTES:
                raise SetupError(
                    f"{shown} is not downloaded: {came} bytes came in {WINDOW_SECONDS:g} s, and {WINDOW_BYTES} are the "
                    "least; check the network, and try it again"
                )
            marked, had = now, has
    done.result()


def _settle(done: Future[None], download: Callable[[], None]) -> None:
    try:
        download()
        done.set_result(None)
    except BaseException as exc:  # the other thread raises it
        done.set_exception(exc)


def _bytes_in(folder: Path) -> int:
    sizes = 0
    for file in folder.rglob("*"):
        try:
            sizes += file.lstat().st_size
        except OSError:  # it was renamed just now
            continue
    return sizes
