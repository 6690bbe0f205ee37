"""Ctrl-C: what is waited for is said at once, and a second one waits for nothing."""

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
    """The first SIGINT is a KeyboardInterrupt, as ever. For the main thread."""
    before = signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first(*_: int | FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    log.warning("stopping: what is begun is finished and kept first; Ctrl-C again ends at once, without it")
    raise KeyboardInterrupt


def _second(*_: int | FrameType | None) -> None:
    os._exit(STATUS)  # threads that compute would be waited for; what they write is not there until it is whole
