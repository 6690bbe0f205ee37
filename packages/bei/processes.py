"""Interpreters that we start on modules of ours. No file of the folder in which they are started runs as code."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
"""The folder that `bei` is imported from."""


def start(module: str, *arguments: object, pass_fds: Iterable[int] = (), **options: Any) -> subprocess.Popen:
    """An interpreter that runs one of our modules as its main one. `options` are those of subprocess.Popen. What cannot
    be started raises OSError."""
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, pass_fds=tuple(pass_fds), env=environment(), **options)


def environment() -> dict[str, str]:
    """In which an interpreter imports what this one does (Truss has its bundle on sys.path for a while only), but from
    the folder that it is started in; so do the interpreters that it starts."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(_places()), "PYTHONSAFEPATH": "1"}


def keep_libraries_isolated() -> None:
    """Interpreters that a library starts for this process take nothing from the current folder, either."""
    os.environ["PYTHONSAFEPATH"] = "1"


def _places() -> list[str]:
    """Where we are, then what is on sys.path: folders by their whole names, and not the current one."""
    here = Path.cwd()
    others = [place for place in map(Path, sys.path) if place.is_absolute() and place.exists() and place != HOME]
    named = [str(place) for place in others if os.pathsep not in str(place) and not place.samefile(here)]
    return [str(HOME), *named]
