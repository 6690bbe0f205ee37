"""What becomes of memory that nobody uses: the C library's, and Python's rings of references."""

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20  # bytes
_YOUNG = 10_000  # objects; 64 requests at once make several times Python's own 700 to 2,000 in a turn of the loop


def give_back_large_blocks() -> None:
    """Give each block of a megabyte or more back to the system when it is freed, from now on, in this process.

    glibc would take its size for one that is asked for again, and keep up to 32 MB of such in heaps that seldom shrink
    (mallopt(3), M_MMAP_THRESHOLD). Other C libraries have no such setting.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 4 * _LARGE)


def settle() -> None:
    """Stop looking for rings in what this process has loaded, and look less often in what is new: a request leaves no
    ring."""
    gc.freeze()  # a collection before it would find nine objects, in 0.1 s of a start
    gc.set_threshold(_YOUNG)
