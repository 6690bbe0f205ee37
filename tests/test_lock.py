"""requirements.lock: every dependency of pyproject.toml, at a version that fits, hashed, from nowhere special."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
PINS = [Requirement(re.split(r" --hash", line)[0]) for line in LINES]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_every_line_is_one_version_with_its_hashes():
    for line, pin in zip(LINES, PINS, strict=True):
        assert re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), line
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line), line
        assert pin.url is None


def test_it_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index|--extra-index|--find-links|--trusted-host|#)", text, re.MULTILINE)


@pytest.mark.parametrize("dependency", DEPENDENCIES)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_what_pyproject_asks_for_is_in_it(dependency, python):
    wanted = Requirement(dependency)
    linux = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(linux)]
    assert len(fitting) == 1, f"{dependency}: `make lock`"
    (version,) = fitting[0].specifier
    assert wanted.specifier.contains(version.version), f"{dependency}: `make lock UPGRADE=1`"
