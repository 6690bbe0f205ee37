"""Limits for any input: time and memory."""

import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 20


class Hang(BaseException):
    """Not an Exception, so that no code mistakes it for a library's error."""


@contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def guarded(run: Callable[[Any], None], given: Any) -> None:
    """A warning is no error of ours, and not fatal outside of tests, so it is ignored here, too."""
    with warnings.catch_warnings(), in_time():
        warnings.simplefilter("ignore")
        run(given)


def bound_memory(more: int) -> None:
    """From here on the process may map so many more bytes; then it raises MemoryError."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))
