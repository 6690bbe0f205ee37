"""The command `bei build`."""

import asyncio
from pathlib import Path
from typing import Any

import click

from bei import logs, options
from bei.engines import choice
from bei.errors import SetupError, printable
from bei.launch import engine_in_words
from bei.serving import ranges
from bei.serving.service import Service
from bei.settings import ModelSettings, several


@click.command(
    cls=options.Command,
    examples=(
        "bei build ./my-model --precision int8",
        "bei build ./my-model --calibrate texts.txt --int8-ranges ranges.npy",
        "bei build ./my-model --plans-for avx512_bf16,avx2_vnni,neon_i8mm",
    ),
)
@options.model
@options.config
@options.log_level
@options.of_settings(ModelSettings)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Embed the texts of this .txt, .jsonl, .csv or .tsv file, and write their ranges into --int8-ranges.",
)
@click.option(
    "--plans-for",
    metavar="LEVELS",
    help="Make the native engine's plans for these levels of processors, too (avx512_bf16,neon_i8mm): for an image or "
    "a volume of other machines.",
)
def build(
    model: str | None,
    config: Path | None,
    log_level: str,
    calibrate: Path | None,
    plans_for: str | None,
    **flags: Any,
) -> None:
    """Build the engine now, so that `serve` starts at once.

    Fetches and checks the checkpoint first. MODEL is a folder or a repository; without one the config says it.
    """
    logs.to_stderr(log_level)
    settings = several.one(model, config, **flags)
    if calibrate and not settings.int8_ranges:
        raise SetupError("--calibrate needs --int8-ranges, the file that it writes")
    machines = choice.levels_named(plans_for) if plans_for else ()
    service = Service(settings.model_copy(update={"int8_ranges": None}) if calibrate else settings)
    service.load()
    served = service.model
    if calibrate and settings.int8_ranges:
        ranges.write(asyncio.run(ranges.measure(served, calibrate)), settings.int8_ranges)
        click.echo(printable(f"{settings.int8_ranges}: the ranges of {calibrate}"))
    if machines:
        choice.make_plans(settings, served.checkpoint, machines)
    service.close()
    click.echo(
        printable(f"{served.settings.public_repo}: {served.checkpoint.folder}, runs on {engine_in_words(served)}")
    )
