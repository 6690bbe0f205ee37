"""Completes dist/ for a release, beside the wheels: `make release`.

It adds the source archive, a bill of materials (CycloneDX) of each locked set of packages, the files for containers and
clusters, and the checksums of all. Nothing is uploaded.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from bei import __version__

ROOT = Path(__file__).parents[1]
LOCKS = {"server": "requirements.lock", "image": "deploy/requirements.lock", "cuda": "deploy/requirements.cuda.lock"}
DEPLOYED = ("deploy", "config.yaml", "LICENSE")


def unready(changelog: str, status: str, version: str) -> list[str]:
    """The reasons against a release of a version: `status` is that of git, empty for a clean tree."""
    found = re.search(rf"^## {re.escape(version)}\b(.*)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    problems = []
    if found is None or "* " not in found[2]:
        problems.append(f"CHANGELOG.md: a section `## {version}` with its changes is missing")
    elif not re.fullmatch(r", \d{4}-\d\d-\d\d", found[1]):
        problems.append(f"CHANGELOG.md: write the day into `## {version}, YYYY-MM-DD`")
    if status:
        problems.append("git status: commit the changes first")
    return problems


def source(dist: Path, *, python: str = sys.executable) -> Path:
    """The sdist; the build is that of pyproject.toml."""
    _run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", str(dist))
    return dist / f"bei-{__version__}.tar.gz"


def materials(dist: Path, python: str, *validation: str) -> list[Path]:
    """The bills of materials, checked by CycloneDX's schema unless `--no-validate` is given. `python` has
    cyclonedx-py."""
    made = []
    for name, lock in LOCKS.items():
        file = dist / f"bei-{__version__}-{name}.cdx.json"
        command = (
            "requirements",
            lock,
            "--pyproject",
            "pyproject.toml",
            "--output-reproducible",
            *validation,
            "-o",
            str(file),
        )
        _run(python, "-W", "ignore", "-m", "cyclonedx_py", *command)
        bill = json.loads(file.read_text())
        bill["metadata"]["component"]["version"] = __version__
        file.write_text(json.dumps(bill, indent=1))
        made.append(file)
    return made


def deployment(dist: Path) -> Path:
    """The Dockerfiles, compose file, manifests, chart, unit and rules, as committed."""
    file = dist / f"bei-{__version__}-deploy.tar.gz"
    _run("git", "archive", "--format=tar.gz", f"--prefix=bei-{__version__}/", "-o", str(file), "HEAD", *DEPLOYED)
    with tarfile.open(file) as archive:
        archive.getmember(f"bei-{__version__}/deploy/Dockerfile")
    return file


def checksums(dist: Path) -> Path:
    """SHA256SUMS, which `sha256sum -c` reads."""
    files = sorted(file for file in dist.iterdir() if file.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (dist / "SHA256SUMS").write_text("".join(lines))
    return dist / "SHA256SUMS"


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])}: {done.stderr or done.stdout}")
    return done.stdout


def main() -> None:
    changelog, status = (ROOT / "CHANGELOG.md").read_text(), _run("git", "status", "--porcelain")
    problems = unready(changelog, status, __version__)
    if problems:
        sys.exit("\n".join((f"{__version__} is not released:", *problems)))
    if sys.argv[1:] == ["check"]:
        return
    dist = ROOT / "dist"
    source(dist, python=str(ROOT / ".venv-wheels" / "bin" / "python"))
    materials(dist, str(ROOT / ".venv-release" / "bin" / "python"))
    deployment(dist)
    checksums(dist)
    sys.stdout.write((dist / "SHA256SUMS").read_text())


if __name__ == "__main__":
    main()
