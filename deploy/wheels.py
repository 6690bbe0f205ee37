"""Builds dist/*.whl for every machine, with the engine compiled for each of its levels: `make wheels`.

zig compiles for any machine and any glibc; auditwheel confirms that a wheel runs where its name says.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bei.engines.native.levels import LEVELS_OF, Level
from bei.engines.native.prebuilt import compile_all

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TOOLS = ROOT / ".venv-wheels" / "bin" / "python"
MACHINES = ("x86_64", "aarch64")  # of Linux
GLIBC = "2.28"  # of 2018: Debian 10, Ubuntu 18.10, RHEL 8 and later
TOO_MANY_BYTES = 25_000_000
"""No wheel has so many."""


def build(machine: str, levels: Sequence[Level], dist: Path) -> Path:
    """The wheel of a machine with the libraries of these levels, in the folder `dist`."""
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    compiler = (str(TOOLS), "-m", "ziglang", "c++", "-s", "-target", f"{machine}-linux-gnu.{GLIBC}")
    with tempfile.TemporaryDirectory() as folder:
        compile_all(Path(folder), [in_zigs_words(level) for level in levels], compiler)
        given = {"BEI_WHEEL_LIBRARIES": folder, "BEI_WHEEL_PLATFORM": platform}
        run("hatchling", "build", "-t", "wheel", "-d", str(dist), **given)
    (wheel,) = dist.glob(f"*{platform}.whl")
    check_size(wheel)
    check(wheel, platform)
    return wheel


def in_zigs_words(level: Level) -> Level:
    """zig names an ARM64 processor, `generic+v8_2a+dotprod`, where other compilers name an architecture."""
    flags = (re.sub(r"^-march=armv(8(?:\.\d)?)-a", _of_architecture, flag) for flag in level.compiler_flags)
    return replace(level, compiler_flags=tuple(flags))


def _of_architecture(found: re.Match[str]) -> str:
    return "-mcpu=generic" if found[1] == "8" else f"-mcpu=generic+v{found[1].replace('.', '_')}a"


def check_size(wheel: Path) -> None:
    """Exits if it is too large."""
    size = wheel.stat().st_size
    if size >= TOO_MANY_BYTES:
        sys.exit(f"{wheel.name} has {size / 1e6:.1f} MB; less than {TOO_MANY_BYTES / 1e6:.0f} MB are allowed")


def check(wheel: Path, platform: str) -> None:
    """Exits unless every library of the wheel runs on its platform."""
    told = run("auditwheel", "show", str(wheel))
    found = re.search(r"platform\s+tag:\s+\"(manylinux_(\d+)_(\d+)_\w+)\"", told)
    wanted = tuple(map(int, GLIBC.split(".")))
    if found is None or (int(found[2]), int(found[3])) > wanted:
        sys.exit(f"{wheel.name} is not of {platform}: {told}")


def run(module: str, *arguments: str, **environment: str) -> str:
    command = [TOOLS, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{module}: {done.stderr or done.stdout}")
    return done.stdout


if __name__ == "__main__":
    shutil.rmtree(DIST, ignore_errors=True)
    for machine in MACHINES:
        wheel = build(machine, LEVELS_OF[machine], DIST)
        sys.stdout.write(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB\n")
