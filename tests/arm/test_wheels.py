"""The wheels that `make wheels` builds, of one level each: a library that zig compiled serves without a compiler."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bei.engines.native.levels import named
from bei.engines.processor import processor_flags
from deploy import wheels
from tests.arm.cases import ALONE, one_family
from tests.support import arm
from tests.support.servers import ROOT

LEVELS = {"x86_64": "avx2", "aarch64": "neon_dotprod"}


@pytest.fixture(params=LEVELS)
def installed(request, tmp_path) -> tuple[list[object], dict[str, str], str]:
    """An interpreter of a machine, the environment in which it has its wheel and no compiler, and its level."""
    machine = request.param
    if not request.config.getoption("--arm") or not wheels.TOOLS.exists():
        pytest.skip("`make test-arm` builds wheels: it takes a minute")
    if machine == "aarch64" and not arm.PYTHON.exists():
        pytest.skip("no .venv-arm")
    (isa,) = named(LEVELS[machine])
    if machine == "x86_64" and not set(isa.features) <= processor_flags():
        pytest.skip("another processor")
    zipfile.ZipFile(wheels.build(machine, [isa], tmp_path / "dist")).extractall(tmp_path / "installed")
    python = arm.PYTHON if machine == "aarch64" else sys.executable
    environment = os.environ if machine == "x86_64" else arm.environment(arm.CPUS[isa.name])
    path = os.pathsep.join([str(tmp_path / "installed"), str(ROOT)])
    return [python, "-P"], {**environment, "PYTHONPATH": path, "CXX": "/no/such/compiler"}, isa.name


def test_it_embeds_without_a_compiler(installed, tmp_path):
    python, environment, level = installed
    (tmp_path / "cases").mkdir()
    case = one_family("bert", tmp_path / "cases" / "bert")
    command = [*python, "-m", "tests.arm.runner", tmp_path / "cases", tmp_path / "cache", level]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "cases" / "bert.npz")
    assert np.abs(found["states"] - case.expected["states"]).max() <= 2e-5 * np.abs(case.expected["states"]).max()
    for precision in ("bf16", "int8"):
        for i in ALONE:
            np.testing.assert_array_equal(found[f"{precision} alone {i}"][0], found[precision][i])
    libraries = list(Path(tmp_path / "installed").rglob("*.so"))
    assert [file.name.split("-")[1] for file in libraries] == [level]
    assert not list((tmp_path / "cache").rglob("*.so")), "nothing was compiled"
