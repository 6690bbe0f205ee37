"""Compiles the library of every level, for a wheel, or for an image without a compiler.

`python -m bei.engines.native.prebuilt` fills the folder that `library.BUILT` names, by this system's compiler.
`--machine aarch64 --compiler "zig c++ -target aarch64-linux-gnu" FOLDER` compiles for another machine.
"""

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from bei.engines.native import library
from bei.engines.native.levels import LEVELS_OF, Level

_MODE = 0o755  # others run it


def compile_all(folder: Path, levels: Sequence[Level], compiler: Sequence[str]) -> list[Path]:
    """A library for each level. Raises SetupError."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for level in levels:
        made.append(folder / library.name_of(level))
        library.compile_into(made[-1], level, compiler)
        made[-1].chmod(_MODE)
    return made


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path), default=library.BUILT)
@click.option("--machine", type=click.Choice(list(LEVELS_OF)), default=platform.machine(), show_default=True)
@click.option("--compiler", default="c++", show_default=True, help="A command, with its first options.")
def main(folder: Path, machine: str, compiler: str) -> None:
    for made in compile_all(folder, LEVELS_OF[machine], shlex.split(compiler)):
        click.echo(f"{made}: {made.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
