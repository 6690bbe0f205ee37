"""Ctrl-C: the first one logs that running parts are finished and kept; a second one ends at once."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("bei")

STATUS = 128 + signal.SIGINT
"""The exit status of a run that was interrupted."""


@contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGINT is a KeyboardInterrupt, as usual. For the main thread."""
    before = signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first(*_: int | FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    log.warning("stopping: running parts are finished and kept first; Ctrl-C again ends at once, without them")
    raise KeyboardInterrupt


def _second(*_: int | FrameType | None) -> None:
    os._exit(STATUS)  # does not wait for threads that compute; unfinished files have no effect
