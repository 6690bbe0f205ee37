"""Interpreters that we start on modules of ours, and start again when they die. No file of the folder in which they are
started runs as code."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
"""The folder that `bei` is imported from."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds before the second start in a row, and before any
_LASTING = 10.0  # seconds that a process has to live for the next death to count as the first


def start(module: str, *arguments: object, pass_fds: Iterable[int] = (), **options: Any) -> subprocess.Popen[bytes]:
    """An interpreter that runs one of our modules as its main one. `options` are those of subprocess.Popen. What cannot
    be started raises OSError."""
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, pass_fds=tuple(pass_fds), env=environment(), **options)


class Restarts:
    """When a process that died is started again: at once, then after pauses that double, and no more than `most` times
    in a row. One that lived for _LASTING seconds begins a new row."""

    def __init__(self, most: int):
        self._most, self.in_a_row = most, 0

    def pause(self, lived: float) -> float | None:
        """Seconds before the next start of one that lived so many; None where there shall be none."""
        self.in_a_row = 1 if lived > _LASTING else self.in_a_row + 1
        if self.in_a_row > self._most:
            return None
        return 0.0 if self.in_a_row == 1 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.in_a_row - 2))


def end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait so long for its end, then kill it; its status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def how(status: int) -> str:
    """In words, how a process ended."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def environment() -> dict[str, str]:
    """In which an interpreter imports what this one does (Truss has its bundle on sys.path for a while only), but from
    the folder that it is started in; so do the interpreters that it starts."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(_places()), "PYTHONSAFEPATH": "1"}


def bound_memory(more: int) -> None:
    """This process may take so many bytes more, or as many as a lower limit of the system's leaves."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bounds = [bound for bound in resource.getrlimit(resource.RLIMIT_AS) if bound != resource.RLIM_INFINITY]
    bound = min([mapped + more, *bounds])
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_libraries_isolated() -> None:
    """Interpreters that a library starts for this process take nothing from the current folder, either."""
    os.environ["PYTHONSAFEPATH"] = "1"


def _places() -> list[str]:
    """Where we are, then what is on sys.path: folders by their whole names, and not the current one."""
    here = Path.cwd()
    others = [place for place in map(Path, sys.path) if place.is_absolute() and place.exists() and place != HOME]
    named = [str(place) for place in others if os.pathsep not in str(place) and not place.samefile(here)]
    return [str(HOME), *named]
