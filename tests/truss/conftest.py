"""truss is in an environment of its own, as on Baseten: `make .venv-truss/ok` makes it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.truss_bundles import ENVIRONMENT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def truss_python() -> str:
    python = Path(os.environ.get("TRUSS_PYTHON", ROOT / ".venv-truss" / "bin" / "python"))
    assert python.exists(), f"{python} is missing; run: make .venv-truss/ok"
    return str(python)


@pytest.fixture(scope="session")
def in_truss(truss_python) -> Callable[..., str]:
    """Runs Python code in truss's environment, and returns its standard output."""

    def run(code: str, *arguments: str, stdin: str = "", timeout: float = 120) -> str:
        command = [truss_python, "-c", code, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
