"""Returns unused memory to the system (the C library's free blocks, and Python's reference cycles), and measures the
memory of processes."""

import ctypes
import gc
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20  # bytes
# Objects; 64 requests at once make several times Python's default of 700 to 2,000 in one turn of the loop.
_YOUNG = 10_000
_CALM, _LATEST = 2.0, 30.0  # seconds
_PROC = Path("/proc")


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


def is_told() -> bool:
    """Whether the system tells the memory of another process, as Linux does."""
    return _PROC.joinpath("self/maps").exists()


def of_processes(pids: Iterable[int]) -> int:
    """The bytes of processes: the anonymous memory that is resident in each, and the whole of each file of data that
    they map, once, whether its pages are resident or not. Code is not counted, and neither is a process that ended.
    0 where the system tells none of it (is_told)."""
    own, mapped = 0, dict[str, int]()
    for pid in pids:
        with suppress(OSError):
            place = _PROC / str(pid)
            own += _anonymous((place / "status").read_text())
            for file, size in _mapped((place / "maps").read_text()).items():
                mapped[file] = max(size, mapped.get(file, 0))
    return own + sum(mapped.values())


def _anonymous(status: str) -> int:
    """The bytes of RssAnon and RssShmem in /proc/PID/status (proc(5))."""
    fields = (line.split() for line in status.splitlines())
    return sum(1024 * int(field[1]) for field in fields if field and field[0] in ("RssAnon:", "RssShmem:"))


def _mapped(maps: str) -> dict[str, int]:
    """Device and inode of each mapped file of data → bytes, from /proc/PID/maps. A file of code has a mapping that may
    be executed."""
    sizes: dict[str, int] = defaultdict(int)
    code = set()
    for line in maps.splitlines():
        addresses, rights, _, device, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            sizes[f"{device} {inode}"] += end - start
            if "x" in rights:
                code.add(f"{device} {inode}")
    return {file: size for file, size in sizes.items() if file not in code}
