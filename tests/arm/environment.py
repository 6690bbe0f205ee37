"""Makes an environment in which programs for ARM64 run here: `python -m tests.arm.environment FOLDER UV`. It needs
Debian on x86-64, no root, and changes nothing outside of the folder: packages are only unpacked.

    tools/       of this machine's architecture: the emulator, the cross compiler
    sysroot/     of ARM64: Python, the C and the C++ library
    lib/         what requirements.lock pins, as wheels for ARM64
    bin/python   an interpreter for ARM64; it and the interpreters that it starts run under the emulator
    bin/c++      a compiler for ARM64; bin/clang++ is another one, where clang is installed
"""

import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.support.debian import download, make_or_say, unpack

TOOLS = ("qemu-user-static", "g++-aarch64-linux-gnu")
ROOT = ("python3.11-minimal:arm64", "libpython3.11-stdlib:arm64", "libstdc++6:arm64")
LOCK = Path(__file__).parents[2] / "requirements.lock"

PYTHON = """\
#!/bin/sh
# QEMU_CPU chooses the processor.
export QEMU_LD_PREFIX="{folder}/sysroot"
exec "{folder}/tools/usr/bin/qemu-aarch64-static" -0 "{folder}/bin/python" "{folder}/sysroot/usr/bin/python3.11" "$@"
"""
COMPILER = """\
#!/bin/sh
export LD_LIBRARY_PATH="{folder}/tools/usr/lib/x86_64-linux-gnu"
exec "{folder}/tools/usr/bin/aarch64-linux-gnu-g++" --sysroot="{folder}/tools" "$@"
"""
CLANG = """\
#!/bin/sh
tools="{folder}/tools/usr"
headers="$tools/aarch64-linux-gnu/include"
exec clang++ --target=aarch64-linux-gnu --gcc-toolchain="$tools" -isystem "$headers/c++/12" \\
  -isystem "$headers/c++/12/aarch64-linux-gnu" -isystem "$headers" "$@"
"""


def main(folder: Path, uv: str) -> None:
    (folder / "bin").mkdir(parents=True)
    _unpack(download((*TOOLS, *ROOT), folder / "apt", ("amd64", "arm64")), folder)
    shutil.rmtree(folder / "apt")
    _program(folder / "bin/python", PYTHON.format(folder=folder))
    _program(folder / "bin/c++", COMPILER.format(folder=folder))
    if shutil.which("clang++"):
        _program(folder / "bin/clang++", CLANG.format(folder=folder))
    (folder / "pyvenv.cfg").write_text(f"home = {folder}/sysroot/usr/bin\nversion = 3.11\n")
    platform = ("--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11", "--only-binary", ":all:")
    packages = ("--target", str(folder / "lib/python3.11/site-packages"), "--require-hashes", "-r", str(LOCK))
    subprocess.run([uv, "pip", "install", "-q", *platform, *packages], check=True)


def _unpack(packages: list[Path], folder: Path) -> None:
    for package in packages:
        part = "sysroot" if package.stem.endswith("_arm64") else "tools"
        unpack(package, folder / part)

    for emulator in (folder / "tools/usr/bin").glob("qemu-*"):
        if emulator.name != "qemu-aarch64-static":  # the others take 400 MB
            emulator.unlink()


def _program(place: Path, text: str) -> None:
    place.write_text(text)
    place.chmod(0o755)


if __name__ == "__main__":
    is_debian = platform.machine() == "x86_64" and shutil.which("apt-get") is not None
    lacking = None if is_debian else "not Debian on x86-64"
    make_or_say(Path(sys.argv[1]), partial(main, uv=sys.argv[2]), "the tests under an emulator", lacking)
