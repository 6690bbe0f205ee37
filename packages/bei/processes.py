"""Starts our modules in interpreters of their own, and starts them again when they die. No file of the current folder
runs as code."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
"""The folder that `bei` is imported from."""
_STATM = Path("/proc/self/statm")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds before the second start in a row, and before any later one
_LASTING = 10.0  # seconds of life after which the next death counts as the first


def start(
    module: str,
    *arguments: object,
    pass_fds: Iterable[int] = (),
    variables: Mapping[str, str] | None = None,
    processors: Set[int] = frozenset(),
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Starts an interpreter with one of our modules as its main one. It has these `variables` beside our own, and runs
    on these `processors`, or on all of ours. `options` are those of subprocess.Popen. Raises OSError."""
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, *map(str, arguments)]
    with _on(processors):
        return subprocess.Popen(
            command, pass_fds=tuple(pass_fds), env={**environment(), **(variables or {})}, **options
        )


@contextmanager
def _on(processors: Set[int]) -> Iterator[None]:
    """This thread runs on these processors meanwhile, and so do all threads of a process that it starts, those of its
    imports included. Raises OSError."""
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Restarts:
    """Decides on restarts of a process that died: the first at once, later ones after pauses that double, at most
    `most` times in a row. A process that lived for _LASTING seconds begins a new row."""

    def __init__(self, most: int):
        self._most, self.in_a_row = most, 0

    def pause(self, lived: float) -> float | None:
        """Seconds before the next start of a process that lived for so many seconds; None for no further start."""
        self.in_a_row = 1 if lived > _LASTING else self.in_a_row + 1
        if self.in_a_row > self._most:
            return None
        return 0.0 if self.in_a_row == 1 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.in_a_row - 2))


def end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Waits `seconds` for the end of a process, then kills it; returns its status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def how(status: int) -> str:
    """The way in which a process ended, in words."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def environment() -> dict[str, str]:
    """The environment in which an interpreter imports the same packages as this one, and nothing from its current
    folder; it also applies to the interpreters that it starts. (Truss has its bundle on sys.path only while it
    loads.)"""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(_places()), "PYTHONSAFEPATH": "1"}


def bound_memory(more: int) -> None:
    """Limits this process to so many bytes more than it has, or to a lower limit of the system. Only Linux tells how
    many it has: elsewhere there is no limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _STATM.exists():
        return
    mapped = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    bounds = [bound for bound in resource.getrlimit(resource.RLIMIT_AS) if bound != resource.RLIM_INFINITY]
    bound = min([mapped + more, *bounds])
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def keep_libraries_isolated() -> None:
    """Interpreters that a library starts for this process import nothing from the current folder either."""
    os.environ["PYTHONSAFEPATH"] = "1"


def _places() -> list[str]:
    """Our own folder, then the folders of sys.path by their absolute names, without the current one."""
    here = Path.cwd()
    others = [place for place in map(Path, sys.path) if place.is_absolute() and place.exists() and place != HOME]
    named = [str(place) for place in others if os.pathsep not in str(place) and not place.samefile(here)]
    return [str(HOME), *named]
