"""What no input may do: take long, or much memory."""

import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 20


class Hang(BaseException):
    """No Exception, so that nothing takes it for the library's."""


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
    """A warning is none of our errors, and not fatal outside of tests: it is let through here, too."""
    with warnings.catch_warnings(), in_time():
        warnings.simplefilter("ignore")
        run(given)


def bound_memory(more: int) -> None:
    """From here on the process may map so many bytes more than it has; then MemoryError."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))
