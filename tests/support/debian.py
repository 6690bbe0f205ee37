"""Debian's packages without root, as files: apt-get, with a state of its own, resolves and downloads them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

APT = """\
APT::Architecture "{architectures[0]}";
APT::Architectures {{ {listed} }};
APT::Install-Recommends "0";
APT::Sandbox::User "";
Dir::State "{state}";
Dir::State::status "/dev/null";
Dir::Cache "{state}";
Debug::NoLocking "1";
"""


def download(packages: Sequence[str], state: Path, architectures: Sequence[str]) -> list[Path]:
    """`packages` and all that they need, in a new folder `state`. The first architecture is that of packages that name
    none. Raises CalledProcessError where apt-get cannot fetch them."""
    for needed in ("lists/partial", "archives/partial"):
        (state / needed).mkdir(parents=True)
    settings = state / "apt.conf"
    listed = " ".join(f'"{architecture}";' for architecture in architectures)
    settings.write_text(APT.format(architectures=architectures, listed=listed, state=state))
    environment = {**os.environ, "APT_CONFIG": str(settings)}
    for command in (("update",), ("install", "--yes", "--download-only", *packages)):
        subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, check=True)
    return sorted((state / "archives").glob("*.deb"))


def unpack(package: Path, folder: Path) -> None:
    subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)


def make_or_say(folder: Path, make: Callable[[Path], None], tests: str, lacking: str | None) -> None:
    """Makes an environment of packages in `folder`. Says that `tests` are skipped where the machine is `lacking` what
    they need, or where apt-get cannot fetch it; there is no folder then."""
    shutil.rmtree(folder, ignore_errors=True)
    if lacking is None:
        try:
            make(folder.absolute())
        except subprocess.CalledProcessError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            lacking = f"{exc.cmd[0]} cannot fetch what they need"
    if lacking is not None:
        print(f"{lacking}: {tests} are skipped")  # noqa: T201  make shows it
