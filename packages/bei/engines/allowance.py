"""The number of threads that an engine may run now. It lies in memory that the server shares with the engine's process:
helper threads read it before each task, and a message to the process could wait, or come late."""

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_ALL = 1 << 30


class Allowance:
    """At first an engine may run all its threads."""

    def __init__(self, file: BinaryIO):
        """The one in a file of `shared_file`, which may be closed afterwards."""
        self._number = ctypes.c_int32.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))

    def allow(self, threads: int) -> None:
        self._number.value = threads

    @property
    def address(self) -> int:
        """The address of the int32, which is valid as long as this object lives."""
        return ctypes.addressof(self._number)


@contextmanager
def shared_file() -> Iterator[BinaryIO]:
    """A file for the allowance of two processes; in memory, where the system has such files. Raises OSError."""
    with os.fdopen(os.memfd_create("bei"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile() as file:
        file.write(_ALL.to_bytes(4, sys.byteorder).ljust(mmap.PAGESIZE, b"\0"))
        file.flush()
        yield file
