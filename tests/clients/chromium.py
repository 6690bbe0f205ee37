"""Fetches Debian's Chromium where the machine has none: `python -m tests.clients.chromium FOLDER`."""

import platform
import shutil
import sys
from pathlib import Path

from tests.support.debian import download, make_or_say, unpack

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")


def main(folder: Path) -> None:
    folder.mkdir()
    for package in download(PACKAGES, folder / "apt", ["amd64"]):
        unpack(package, folder / "root")
        package.unlink()
    shutil.rmtree(folder / "apt")


if __name__ == "__main__":
    if shutil.which("chromium") and shutil.which("chromedriver"):
        print("the machine has Chromium")  # noqa: T201  make shows it
    else:
        is_debian = platform.machine() == "x86_64" and shutil.which("apt-get") is not None
        lacking = None if is_debian else "not Debian on x86-64"
        make_or_say(Path(sys.argv[1]), main, "the tests of the page in a browser", lacking)
