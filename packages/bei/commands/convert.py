"""The command `bei convert`."""

from pathlib import Path

import click

from bei import files, logs, options
from bei.checkpoint import sources
from bei.checkpoint.convert import convert as write
from bei.errors import printable
from bei.settings import SourceSettings


@click.command(
    cls=options.Command,
    examples=("bei convert BAAI/bge-small-en-v1.5 ./bge-small",),
)
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--revision", help="The branch, tag or commit of a repository. Unset: the newest.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    envvar="BEI_CACHE_DIR",
    default=SourceSettings.model_fields["cache_dir"].default,
    help="The folder for downloads.",
)
@options.log_level
def convert(model: str, output: Path, revision: str | None, cache_dir: Path, log_level: str) -> None:
    """Write MODEL, a folder or a repository of the hub, into the folder OUTPUT, with safetensors and tokenizer.json.

    A pytorch_model.bin becomes model.safetensors, and the files of an older tokenizer become tokenizer.json. Other
    files are copied. The result is read as `serve` reads it; a model that cannot be served is refused.
    """
    logs.to_stderr(log_level)
    source = "LOCAL" if files.expanded(model).is_dir() else "HF"
    given = {"source": source, "repo": model, "revision": revision, "cache_dir": cache_dir}
    settings = SourceSettings.model_validate(given)
    write(sources.fetch(settings).folder, output, settings.public_repo)
    click.echo(printable(f"{output}: {settings.public_repo} as safetensors; serve it with source LOCAL"))
