"""The number of threads that an engine may run now. It lies in memory that the server shares with the engine's process:
helper threads read it before each task, and a message to the process could wait, or come late."""

import ctypes
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_ALL = 1 << 30


class Allowance:
    """At first an engine may run all its threads."""

    def __init__(self, file: BinaryIO):
        """The one in a file of `shared_file`, which may be closed afterwards."""
        self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)  # has a descriptor of its own
        self._number = ctypes.c_int32.from_buffer(self._memory)
        self._changing = threading.Lock()

    def allow(self, threads: int) -> None:
        """Without effect once it is closed: the engine has ended."""
        with self._changing:
            if not self._memory.closed:
                self._number.value = threads

    def close(self) -> None:
        with self._changing:
            if not self._memory.closed:
                del self._number  # memory that a number lies in is not closed
                self._memory.close()

    @property
    def address(self) -> int:
        """The address of the int32, which is valid until it is closed."""
        return ctypes.addressof(self._number)


@contextmanager
def shared_file() -> Iterator[BinaryIO]:
    """A file for the allowance of two processes; in memory, where the system has such files. Raises OSError."""
    with os.fdopen(os.memfd_create("bei"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile() as file:
        file.write(_ALL.to_bytes(4, sys.byteorder).ljust(mmap.PAGESIZE, b"\0"))
        file.flush()
        yield file
