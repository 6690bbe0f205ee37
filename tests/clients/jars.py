"""Fetches Apache's HTTP client for Java, as Debian packages it: `python -m tests.clients.jars FOLDER`."""

import shutil
import sys
from pathlib import Path

from tests.support.debian import download, make_or_say, unpack


def main(folder: Path) -> None:
    for package in download(["libhttpclient5-java"], folder / "apt", ["amd64"]):
        if package.name.endswith("_all.deb"):
            unpack(package, folder)
    shutil.rmtree(folder / "apt")


if __name__ == "__main__":
    has_both = shutil.which("apt-get") is not None and shutil.which("java") is not None
    lacking = None if has_both else "no Debian, or no Java"
    make_or_say(Path(sys.argv[1]), main, "the tests of Java's clients", lacking)
