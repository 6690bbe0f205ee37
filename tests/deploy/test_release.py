"""The files that `make release` puts beside the wheels."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bei import __version__
from deploy import release
from tests.support.servers import ROOT


@pytest.mark.parametrize(
    ("changelog", "status", "words"),
    [
        ("# C\n## 1.2.0, 2026-11-30\n* A.\n\n## 1.1.0, 2026-01-01\n* B.\n", "", []),
        ("# C\n## 1.2.0, not released yet\n* A.\n", "", ["the day"]),
        ("# C\n## 1.2.0, 2026-11-30\n\n## 1.1.0, 2026-01-01\n* B.\n", "", ["is missing"]),
        ("# C\n## 1.2.01, 2026-11-30\n* A.\n", " M x", ["is missing", "commit"]),
    ],
)
def test_a_version_that_is_not_ready_is_refused(changelog, status, words):
    found = release.unready(changelog, status, "1.2.0")
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))


def test_this_version_has_its_changes():
    found = release.unready((ROOT / "CHANGELOG.md").read_text(), "", __version__)
    assert [problem for problem in found if "is missing" in problem] == []


def test_a_wheel_can_be_made_of_the_source(tmp_path: Path):
    archive = release.source(tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    (folder,) = (tmp_path / "source").iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    sources = {str(path.relative_to(ROOT / "packages")) for path in (ROOT / "packages" / "bei").rglob("*.py")}
    assert sources <= set(zipfile.ZipFile(wheel).namelist())
    assert not [path for path in folder.iterdir() if path.name.startswith((".venv", ".models", ".bench"))]


def test_the_files_of_containers_and_clusters(tmp_path: Path):
    with tarfile.open(release.deployment(tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"deploy/Dockerfile", "deploy/helm/values.yaml", "deploy/requirements.lock", "config.yaml"} <= names
    assert not [name for name in names if name.startswith(("packages", "tests"))]


def test_the_bill_of_materials_has_each_locked_package(tmp_path: Path):
    python = ROOT / ".venv-release" / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment for releases (make .venv-release/ok)")
    files = release.materials(tmp_path, str(python), "--no-validate")  # seconds for each; a release does
    for file, lock in zip(files, release.LOCKS.values(), strict=True):
        bill = json.loads(file.read_text())
        assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
        found = {f"{one['name']}=={one['version']}" for one in bill["components"]}
        assert found == set(re.findall(r"^([\w.-]+==[^ ;]+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_checksums_are_those_of_sha256sum(tmp_path: Path):
    for name in ("a.whl", "b.tar.gz"):
        (tmp_path / name).write_text(name)
    release.checksums(tmp_path)
    release.checksums(tmp_path)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a.whl: OK\nb.tar.gz: OK\n")
