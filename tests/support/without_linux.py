"""Python without what only Linux has: no /proc, no /sys, no affinity, no settings of glibc, no counters of a thread.

Interpreters that have this file's folder on their path under the name `sitecustomize` begin with it.
"""

import ctypes
import io
import os
import resource
from collections.abc import Callable
from typing import Any

_ABSENT = ("/proc", "/sys")
_TOLD = ("/proc/cpuinfo", "/proc/self/auxv")  # by sysctl elsewhere (tests/engines/test_processor.py)


def _is_absent(place: Any) -> bool:
    return str(place).startswith(_ABSENT) and str(place) not in _TOLD


def _hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    def hidden(place: Any, *arguments: Any, **options: Any) -> Any:
        if _is_absent(place):
            raise FileNotFoundError(2, "No such file or directory", str(place))
        return function(place, *arguments, **options)

    return hidden


class _Library(ctypes.CDLL):
    def __init__(self, name: str | None, *arguments: Any, **options: Any):
        if _is_absent(name):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name in ("mallopt", "malloc_trim"):
            raise AttributeError(name)
        return super().__getattr__(name)


for module, name in ((io, "open"), (os, "stat"), (os, "open"), (os, "lstat")):
    setattr(module, name, _hiding(getattr(module, name)))
ctypes.CDLL = _Library  # type: ignore[misc]  this is the point
del os.sched_getaffinity, os.sched_setaffinity, resource.RUSAGE_THREAD
