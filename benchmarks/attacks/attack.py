"""The cost of hostile clients to everyone else. Each module here has ATTACKS: by name, a function that attacks a port
of 127.0.0.1 until a time of time.monotonic().

Run: python -m benchmarks.attacks http
"""

import importlib
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

Attack = Callable[[int, float], Coroutine[Any, Any, None]]


def attacks(module: str) -> dict[str, Attack]:
    return importlib.import_module(f"benchmarks.attacks.{module}").ATTACKS


def attack(module: str, name: str, port: int, seconds: float) -> None:
    """Runs an attack in a process of its own with the lowest priority, because it stands for another machine."""
    os.nice(10)
    uvloop.run(attacks(module)[name](port, time.monotonic() + seconds))
