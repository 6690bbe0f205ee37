"""Python without what only Linux has: no /proc, no /sys, no affinity, no settings of glibc, and no counters or priority
of a thread.

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


def _of_processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of priorities to which the id of a thread is nobody's."""

    def refusing(which: int, who: int, *priority: int) -> Any:
        if which == os.PRIO_PROCESS and who not in (0, os.getpid()):
            raise ProcessLookupError(3, "No such process")
        return function(which, who, *priority)

    return refusing


for module, name in ((io, "open"), (os, "stat"), (os, "open"), (os, "lstat")):
    setattr(module, name, _hiding(getattr(module, name)))
os.getpriority, os.setpriority = _of_processes(os.getpriority), _of_processes(os.setpriority)
ctypes.CDLL = _Library  # type: ignore[misc]  this is the point
del os.sched_getaffinity, os.sched_setaffinity, resource.RUSAGE_THREAD
