"""The command `bei embed`."""

import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bei import extras, logs, options
from bei.errors import SetupError, printable
from bei.settings import ModelSettings, several


@click.command(
    cls=options.Command,
    examples=(
        "bei embed docs.jsonl vectors.parquet --column body --model ./my-model",
        "bei embed docs.parquet vectors.npy --precision int8 --nice 10",
    ),
)
@click.argument("input", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="The column of the texts.")
@click.option("--dimensions", type=int, help="Numbers of a vector.  [default: the model's own, else all]")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale vectors to length 1.")
@click.option("--prompt-name", help="The model's prompt before each text.")
@click.option(
    "--part-rows",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Rows of a part; a part is the unit of progress.",
)
@click.option(
    "--ray", metavar="ADDRESS", help="The Ray cluster that computes: auto, local, or host:port. Unset: this machine."
)
@click.option(
    "--workers", type=click.IntRange(1), help="The number of models on the cluster. Unset: one per GPU, or per node."
)
@click.option(
    "--nice",
    type=click.IntRange(0, 19),
    help="Lower the priority by this much, so that a server on the same machine goes first. Unset: not at all.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write a page about the texts into this .html file: lengths, cuts, copies, speed over time.",
)
@click.option("--model", help="A folder or a repository of the hub. Unset: the config says it.")
@options.config
@options.log_level
@options.of_settings(ModelSettings)
def embed(
    model: str | None,
    config: Path | None,
    log_level: str,
    input: Path,
    output: Path,
    column: str,
    dimensions: int | None,
    normalize: bool,
    prompt_name: str | None,
    part_rows: int,
    ray: str | None,
    workers: int | None,
    nice: int | None,
    report: Path | None,
    **flags: Any,
) -> None:
    """Embed the texts of INPUT into OUTPUT. INPUT is a .parquet, .jsonl, .csv, .tsv or .txt file, or a folder of such
    files.

    OUTPUT is a .parquet file with the input's columns and `embedding`, an .npy file, or a folder of Parquet files; rows
    keep their order. After an interruption the same command resumes.
    """
    logs.to_stderr(log_level)
    _require(ray)
    _check(ray, workers, nice, report)
    from bei.bulk import interrupt, run

    os.nice(nice or 0)
    settings = several.one(model, config, **flags)
    if settings.devices and ray:
        raise SetupError("--devices is for this machine; on a cluster set --workers and --threads")
    try:
        with interrupt.interruptible():
            row_count = run.embed(
                settings,
                input,
                output,
                column=column,
                dimensions=dimensions,
                normalize=normalize,
                prompt_name=prompt_name,
                part_rows=part_rows,
                ray=ray,
                workers=workers,
                report=report,
            )
    except KeyboardInterrupt as exc:
        kept = str(exc) or "nothing was computed yet"
        click.echo(printable(f"bei: stopped; {kept}; go on with: {shlex.join(['bei', *sys.argv[1:]])}"), err=True)
        sys.exit(interrupt.STATUS)
    click.echo(printable(f"{output}: {row_count} rows"))


def _require(ray: str | None) -> None:
    """Raises SetupError with the command that installs what is missing."""
    try:
        importlib.import_module("bei.bulk.run")
        if ray:
            importlib.import_module("bei.bulk.cluster")
    except ModuleNotFoundError as exc:
        raise SetupError(f"{exc.name} is not installed: {extras.install('ray' if ray else 'bulk')}") from None


def _check(ray: str | None, workers: int | None, nice: int | None, report: Path | None) -> None:
    """Raises SetupError for options that have no effect together."""
    if workers and not ray:
        raise SetupError("--workers is for --ray; on this machine use --threads")
    if nice and ray:
        raise SetupError("--nice is for this machine; the processes of --ray have the priority that Ray gives them")
    if report is not None and report.suffix.lower() != ".html":
        raise SetupError(f"--report {report}: the file's name must end with .html")
