"""Rests of a loop that never waits, for the threads that need the interpreter's lock.

A loop with work in every turn gives the lock back at each poll, for an instant that is too short for another thread to
wake up in. The other thread asks for the lock only after it has waited a whole switch interval undisturbed (CPython,
ceval_gil.c), so each poll puts that off. Figures: docs/design-notes.md, "A query beside a bulk".
"""

import asyncio
import resource
import time

_EVERY = 0.002  # seconds between two looks at a busy loop
_REST = 0.0001  # seconds in which another thread wakes up
_THIS_THREAD = getattr(resource, "RUSAGE_THREAD", None)


class Rests:
    """Looks at the running loop for as long as calls come, and rests if the loop has not waited since the last look."""

    def __init__(self) -> None:
        self._is_looking, self._waits = False, 0

    def look(self) -> None:
        """Call this at each call of a client."""
        if not self._is_looking:
            self._is_looking = True
            self._waits = _waits()
            asyncio.get_running_loop().call_later(_EVERY, self._rest)

    def _rest(self) -> None:
        self._is_looking = False
        if _waits() == self._waits:
            time.sleep(_REST)


def _waits() -> int:
    """How often this thread has waited: for events, or for the lock. Constant where the system does not tell."""
    return 0 if _THIS_THREAD is None else resource.getrusage(_THIS_THREAD).ru_nvcsw
