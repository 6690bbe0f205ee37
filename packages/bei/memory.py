"""Returns unused memory to the system: the C library's free blocks, and Python's reference cycles."""

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20  # bytes
# Objects; 64 requests at once make several times Python's default of 700 to 2,000 in one turn of the loop.
_YOUNG = 10_000
_CALM, _LATEST = 2.0, 30.0  # seconds


def give_back_large_blocks() -> None:
    """Returns each block of a megabyte or more to the system when it is freed, from now on, in this process.

    By default glibc expects the size of a freed block to be needed again, and keeps up to 32 MB of such blocks in heaps
    that seldom shrink (mallopt(3), M_MMAP_THRESHOLD). Other C libraries have no such setting.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 4 * _LARGE)


class Trimmer:
    """Returns small free blocks to the system when a process has been calm for two seconds.

    A large request leaves tens of megabytes of free blocks in the heap of each thread that worked on it, and glibc
    returns only those at the end of a heap (malloc_trim(3)). Trimming locks each heap, for tens of milliseconds where
    there is much to do.
    """

    def __init__(self, trim: Callable[[int], object] | None = None) -> None:
        """`trim` is the C library's function, where it has one."""
        of_library: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
        self._trim = trim or of_library
        self._requested = threading.Event()
        threading.Thread(target=self._run, name="trimmer", daemon=True).start()

    def soon(self) -> None:
        """Trims once two seconds have passed without another call of this, or after half a minute of such calls."""
        self._requested.set()

    def _run(self) -> None:
        while self._requested.wait():
            latest = time.monotonic() + _LATEST
            while self._requested.is_set() and time.monotonic() < latest:
                self._requested.clear()
                time.sleep(_CALM)
            gc.collect()  # takes a millisecond for unfrozen objects; it also empties Python's free lists
            self._trim(0)


def settle() -> None:
    """Excludes everything that this process has loaded from garbage collection, and collects new objects less often: a
    request leaves no cycle."""
    gc.freeze()  # a collection before it would find nine objects, and takes 0.1 s of a start
    gc.set_threshold(_YOUNG)
