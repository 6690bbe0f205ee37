"""Fetches Apache's HTTP client for Java, as Debian packages it: `python -m tests.clients.jars FOLDER`."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.debian import download, unpack


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for package in download(["libhttpclient5-java"], folder / "apt", ["amd64"]):
        if package.name.endswith("_all.deb"):
            unpack(package, folder)
    shutil.rmtree(folder / "apt")


if __name__ == "__main__":
    if shutil.which("apt-get") is None or shutil.which("java") is None:
        print("no Debian, or no Java: the tests of Java's clients are skipped")  # noqa: T201  make shows it
    else:
        try:
            main(Path(sys.argv[1]).absolute())
        except subprocess.CalledProcessError as exc:
            shutil.rmtree(sys.argv[1], ignore_errors=True)
            print(f"{exc.cmd[0]} cannot fetch it: the tests of Java's clients are skipped")  # noqa: T201  make shows it
