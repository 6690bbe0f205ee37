"""What becomes of memory that nobody uses: the C library's, and Python's rings of references."""

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20  # bytes
_YOUNG = 10_000  # objects; 64 requests at once make several times Python's own 700 to 2,000 in a turn of the loop
_CALM, _LATEST = 2.0, 30.0  # seconds


def give_back_large_blocks() -> None:
    """Give each block of a megabyte or more back to the system when it is freed, from now on, in this process.

    glibc would take its size for one that is asked for again, and keep up to 32 MB of such in heaps that seldom shrink
    (mallopt(3), M_MMAP_THRESHOLD). Other C libraries have no such setting.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 4 * _LARGE)


class Trimmer:
    """Gives the small blocks that are free back to the system when a process has been calm for two seconds.

    A large request leaves tens of megabytes of them in the heap of each thread that worked at it, and glibc returns
    only those at a heap's end (malloc_trim(3)). Each heap is locked while that is done: tens of milliseconds for many.
    """

    def __init__(self, trim: Callable[[int], object] | None = None) -> None:
        """`trim` is the C library's, where it has one."""
        of_library: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
        self._trim = trim or of_library
        self._requested = threading.Event()
        threading.Thread(target=self._run, name="trimmer", daemon=True).start()

    def soon(self) -> None:
        """Trim once this has not been asked for in two seconds, and in half a minute however often it is."""
        self._requested.set()

    def _run(self) -> None:
        while self._requested.wait():
            latest = time.monotonic() + _LATEST
            while self._requested.is_set() and time.monotonic() < latest:
                self._requested.clear()
                time.sleep(_CALM)
            gc.collect()  # a millisecond of what is not frozen; Python's lists of objects to use again are emptied, too
            self._trim(0)


def settle() -> None:
    """Stop looking for rings in what this process has loaded, and look less often in what is new: a request leaves no
    ring."""
    gc.freeze()  # a collection before it would find nine objects, in 0.1 s of a start
    gc.set_threshold(_YOUNG)
