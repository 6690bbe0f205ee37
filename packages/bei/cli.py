"""The command line: `bei serve | embed | info | build | convert`, and `text-embeddings-router` with TEI's flags."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from bei import __version__, bundle, files, logs, options
from bei.engines import choice
from bei.errors import SetupError, printable
from bei.launch import engine_in_words, outputs
from bei.launch import serve as serve_until_signal
from bei.router import text_embeddings_router
from bei.server import hosting
from bei.serving import ranges
from bei.serving.service import Service
from bei.settings import ModelSettings, Settings, SourceSettings, several
from bei.settings.devices import names_of

__all__ = ["main", "text_embeddings_router"]


_configs = click.option(
    "--config",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The deployment: a Truss config.yaml with a trt_llm block. Repeatable: one server serves several models.  "
    "[default: BEI_CONFIG, else config.yaml]",
)
_models = click.argument("models", metavar="[MODEL]...", nargs=-1)
_LATE = {
    "embed": "bei.embed:embed",
    "doctor": "bei.doctor.command:doctor",
    "bench": "bei.bench.command:bench",
    "eval": "bei.evaluate.command:evaluate",
}
_HEADINGS = {
    "Serve": ("serve", "info", "build", "doctor"),
    "Files": ("embed", "convert"),
    "Measure": ("bench", "eval"),
}


@click.group(
    cls=options.Program, late=_LATE, headings=_HEADINGS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="bei")
def main() -> None:
    """An open embedding engine: `bei serve MODEL` serves a folder or a repository of the hub, and `bei serve` the model
    that a Truss config.yaml names.

    Every setting comes from the config's trt_llm block and its environment_variables, then from BEI_* environment
    variables (BEI_PORT=9000), then from flags; the last one wins.
    """


@main.command(
    cls=options.Command,
    examples=(
        "bei serve BAAI/bge-small-en-v1.5",
        "bei serve ./my-model --port 9000 --precision int8",
        "bei serve --config config.yaml",
    ),
)
@_models
@_configs
@options.log_level
@options.of_settings(Settings)
def serve(models: Sequence[str], config: Sequence[Path], log_level: str, **flags: Any) -> None:
    """Serve over HTTP until SIGTERM. MODEL is a folder or a repository of the hub; without one the config says it.

    The routes are OpenAI's, TEI's, Cohere's and vLLM's for embeddings, reranking, classes and entities, as the model
    allows, with /health and /metrics. GET /docs lists them all.
    """

    def read() -> Sequence[Settings]:
        return several.named(models, config, **flags)

    settings = read()
    hosting.start_logs(settings[0], log_level)
    serve_until_signal(settings, read)


@main.command(
    cls=options.Command,
    examples=(
        "bei info ./my-model",
        "bei info BAAI/bge-small-en-v1.5 --as-config > config.yaml",
        "bei info --config config.yaml --json",
    ),
)
@_models
@_configs
@options.log_level
@options.of_settings(ModelSettings)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each model.")
@click.option("--as-config", is_flag=True, help="Print the config.yaml of the one MODEL, for --config and truss push.")
def info(
    models: Sequence[str], config: Sequence[Path], log_level: str, as_json: bool, as_config: bool, **flags: Any
) -> None:
    """Print the model that would be served, the engine and the reason for it, and every setting. MODEL is a folder or a
    repository of the hub; without one the config says it."""
    logs.to_stderr("warning" if log_level == "info" else log_level)
    if as_config:
        click.echo(_as_config(models, config, as_json, flags), nl=False)
        return
    found = []
    for settings in several.named(models, config, **flags):
        service = Service(settings)
        service.load()
        facts = _facts(service)
        if models:  # no config says it
            facts["settings"]["base_model"] = bundle.kind(service.model.checkpoint)
        found.append(facts)
        service.close()
    if as_json:
        click.echo("\n".join(json.dumps(facts, indent=2) for facts in found))
    else:
        click.echo("---\n".join(yaml.safe_dump(facts, sort_keys=False) for facts in found).rstrip())


@main.command(
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


@main.command(
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
    from bei.checkpoint import sources
    from bei.checkpoint.convert import convert as write

    source = "LOCAL" if files.expanded(model).is_dir() else "HF"
    given = {"source": source, "repo": model, "revision": revision, "cache_dir": cache_dir}
    settings = SourceSettings.model_validate(given)
    write(sources.fetch(settings).folder, output, settings.public_repo)
    click.echo(printable(f"{output}: {settings.public_repo} as safetensors; serve it with source LOCAL"))


def _as_config(models: Sequence[str], config: Sequence[Path], as_json: bool, flags: Mapping[str, Any]) -> str:
    """A config.yaml's text. Raises SetupError unless one model is named."""
    if len(models) != 1:
        raise SetupError("--as-config needs one MODEL: bei info MODEL --as-config > config.yaml")
    if as_json:
        raise SetupError("--as-config prints YAML; leave --json out")
    (settings,) = several.named(models, config, **flags)
    made = bundle.config_of(settings, Service(settings).read(), flags)
    of_this_machine = settings.source == "LOCAL"
    note = "# The folder is of this machine: for `truss push` name a repository.\n" if of_this_machine else ""
    return note + yaml.safe_dump(made, sort_keys=False)


def _facts(service: Service) -> dict[str, Any]:
    served = service.model
    checkpoint, facts = served.checkpoint, served.engine.facts
    model = {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "revision": checkpoint.revision,
        "stored_as": checkpoint.dtype,
        "task": checkpoint.task,
        "default_route": served.route,
        **outputs(checkpoint),
        "max_tokens": checkpoint.max_tokens,
        "prompts": dict(checkpoint.prompts.texts),
    }
    chosen = {
        "name": facts.name,
        "device": facts.device,
        "devices": names_of(facts.devices),
        "precision": facts.computes_in,
        "reason": facts.reason,
    }
    return {"model": model, "engine": chosen, "settings": service.settings.model_dump(mode="json")}


if __name__ == "__main__":
    main()
