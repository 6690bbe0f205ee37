"""Fetches Debian's Chromium where the machine has none: `python -m tests.clients.chromium FOLDER`."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.debian import download, unpack

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in download(PACKAGES, folder / "apt", ["amd64"]):
        unpack(package, folder / "root")
        package.unlink()
    shutil.rmtree(folder / "apt")


if __name__ == "__main__":
    if shutil.which("chromium") and shutil.which("chromedriver"):
        print("the machine has Chromium")  # noqa: T201  make shows it
    elif platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        print("not Debian on x86-64: the tests of the page in a browser are skipped")  # noqa: T201  make shows it
    else:
        try:
            main(Path(sys.argv[1]).absolute())
        except subprocess.CalledProcessError as exc:
            shutil.rmtree(sys.argv[1], ignore_errors=True)
            print(f"{exc.cmd[0]} cannot fetch it: the tests of the page in a browser are skipped")  # noqa: T201  make shows it
