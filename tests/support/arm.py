"""Programs for ARM64 on this machine (tests/arm/environment.py)."""

import os
import subprocess

import pytest

from tests.support.servers import ROOT

FOLDER = ROOT / ".venv-arm"
PYTHON, COMPILER = FOLDER / "bin/python", FOLDER / "bin/c++"
COMPILERS = [file for name in ("c++", "clang++") if (file := FOLDER / "bin" / name).exists()]
CPUS = {"neon_i8mm": "max", "neon_dotprod": "neoverse-n1", "neon": "cortex-a72"}
"""For each level a processor of the emulator that has no better one."""


def environment(cpu: str) -> dict[str, str]:
    """That of an interpreter as on that processor. Its compiler keeps objects, too (tests/support/compiler.py)."""
    path = os.pathsep.join([str(ROOT / "packages"), str(ROOT)])
    return {**os.environ, "QEMU_CPU": cpu, "PYTHONPATH": path, "TESTS_CXX": str(COMPILER)}


def run(cpu: str, *words: object) -> str:
    """The output of an interpreter for ARM64, run with these words."""
    command = [str(PYTHON), *map(str, words)]
    done = subprocess.run(command, env=environment(cpu), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


needs_arm = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-arm: `make test-arm` makes it, on Debian for x86-64"
)
