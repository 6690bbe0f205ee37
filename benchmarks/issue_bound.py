"""The kernels of ARM64 by counting: cycles of their inner loops, as LLVM's models of processors predict them,
against the bound of the instructions that multiply. `python -m benchmarks.issue_bound`

It needs `make test-arm`'s compiler, and llvm-mca of LLVM 19 or newer (Debian: apt-get install llvm-19).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from bei.engines.native import library
from bei.engines.native.levels import ARM

ROOT = Path(__file__).parents[1]
PROCESSORS = ("neoverse-v1", "neoverse-v2", "apple-m1")
KERNELS = {
    **dict.fromkeys(("usmmla", "bfmmla"), ("kernel/mmla.cpp", 0)),
    **dict.fromkeys(("sdot", "fmla"), ("kernel/dot.cpp", 1)),
}
"""By the instruction that multiplies: its source, and the level in ARM that it is compiled for."""
ROUNDS = 1000
LEAST = 0.85
"""The share of the bound that the matrix instructions must reach."""
_LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--compiler", default=str(ROOT / ".venv-arm/bin/c++"))
    options.add_argument("--llvm-mca", default=shutil.which("llvm-mca-19") or "llvm-mca")
    chosen, worst = options.parse_args(), 1.0
    click.echo("| kernel | processor | products | cycles | bound | share |\n|---|---|---|---|---|---|")
    for instruction, (source, level) in KERNELS.items():
        loop = inner_loop(assembly(chosen.compiler, source, ARM[level].compiler_flags), instruction)
        products = products_of(loop, instruction)
        for processor in PROCESSORS:
            cycles = told(chosen.llvm_mca, processor, loop, "Total Cycles") / ROUNDS
            bound = told(chosen.llvm_mca, processor, products, "Block RThroughput")
            click.echo(
                f"| {instruction} | {processor} | {len(products)} | {cycles:.2f} | {bound:.2f} | {bound / cycles:.0%} |"
            )
            if "mmla" in instruction:
                worst = min(worst, bound / cycles)
    return 0 if worst >= LEAST else 1


def assembly(compiler: str, source: str, flags: tuple[str, ...]) -> str:
    file = library._SOURCES / source
    command = [compiler, *library.COMPILE, *library.INCLUDE, *flags, "-S", str(file), "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inner_loop(text: str, instruction: str) -> list[str]:
    """The instructions of the loop of the largest tile: from a label to the branch back to it."""
    return max(_loops(text), key=lambda loop: len(products_of(loop, instruction)))


def _loops(text: str) -> Iterator[list[str]]:
    pieces = _LABEL.split(text)[1:]
    for label, body in zip(pieces[::2], pieces[1::2], strict=True):
        back = re.search(rf"^\s+b\.?\w+\s+{re.escape(label)}\b", body, re.MULTILINE)
        if back:
            lines = map(str.strip, body[: back.end()].splitlines())
            yield [line for line in lines if line and not line.startswith((".", "//"))]


def products_of(loop: list[str], instruction: str) -> list[str]:
    """The instructions that multiply. Alone they take as many cycles as can issue them."""
    return [line for line in loop if line.startswith(instruction)]


def told(llvm_mca: str, processor: str, lines: list[str], what: str) -> float:
    """A number of llvm-mca's report on a loop of these instructions."""
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        target = ("-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+i8mm,+bf16,+dotprod")
        command = [llvm_mca, *target, f"-iterations={ROUNDS}", file.name]
        said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode or "not a recognized processor" in said.stderr:
        raise SystemExit(f"{llvm_mca} does not know {processor}: LLVM 19 or newer is needed")
    return float(re.findall(rf"{what}:\s+([\d.]+)", said.stdout)[0])


if __name__ == "__main__":
    sys.exit(main())
