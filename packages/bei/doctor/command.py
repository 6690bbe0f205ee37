"""The command `bei doctor`."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bei import logs, options
from bei.doctor import caches
from bei.doctor.caches import Cache
from bei.doctor.findings import Finding, bytes_in_words
from bei.doctor.machine import engines, machine, parts
from bei.errors import SetupError, printable
from bei.launch import engine_in_words
from bei.serving.service import Service
from bei.settings import ModelSettings, Settings, several

_UNUSED_DAYS = 30


@click.command(
    cls=options.Command,
    examples=(
        "bei doctor",
        "bei doctor ./my-model --precision int8",
        "bei doctor --prune --unused-days 7",
    ),
)
@options.model
@options.config
@click.option("--prune", is_flag=True, help="Remove what no start is likely to use again, and print the bytes.")
@click.option(
    "--unused-days",
    type=click.FloatRange(0),
    default=_UNUSED_DAYS,
    show_default=True,
    help="The days without a reading after which an entry of a cache is unused.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.log_level
@options.of_settings(ModelSettings)
def doctor(
    model: str | None,
    config: Path | None,
    prune: bool,
    unused_days: float,
    as_json: bool,
    log_level: str,
    **flags: Any,
) -> None:
    """Print what this machine has, which engine would serve and why, what is missing with the command that mends it,
    and the sizes of the caches.

    With MODEL or --config the model is fetched, and its engine started, as `bei serve` does it. The exit status is 1
    where something prevents serving.
    """
    logs.to_stderr("error" if log_level == "info" else log_level)
    settings = several.one(model, config, **flags) if model or config else None
    cache_dir = settings.cache_dir if settings else _cache_dir(flags)
    found = {"machine": list(machine(cache_dir)), "engines": list(engines(cache_dir)), "extras": list(parts())}
    found["model"] = [_model(settings)] if settings else [_any_engine(found["engines"])]
    held = caches.read(cache_dir, unused_days)
    freed = caches.prune(held) if prune else None
    click.echo(_as_json(found, held, freed) if as_json else _in_words(found, held, freed))
    if any(finding.state == "fault" for group in found.values() for finding in group):
        sys.exit(1)


def _cache_dir(flags: Mapping[str, Any]) -> Path:
    """Where the cache is without a model. Raises SetupError for a flag that is about one."""
    others = options.given({name: value for name, value in flags.items() if name != "cache_dir"})
    if others:
        raise SetupError(f"{others[0]} is about a model; name it: bei doctor MODEL {others[0]}")
    default = ModelSettings.model_fields["cache_dir"].default
    return Path(flags["cache_dir"] or os.environ.get("BEI_CACHE_DIR") or default)


def _model(settings: Settings) -> Finding:
    """The engine that serves this model, by starting it."""
    service = Service(settings)
    try:
        service.load()
        served = service.model
        return Finding(settings.public_repo, "ok", f"{served.checkpoint.task}, runs on {engine_in_words(served)}")
    except SetupError as exc:
        return Finding(settings.public_repo, "fault", exc.message)
    finally:
        service.close()


def _any_engine(of: Sequence[Finding]) -> Finding:
    """Without a model: the first engine that runs here."""
    runs = {finding.subject for finding in of if finding.state == "ok"}
    first = next((name for name in ("tensorrt", "native", "torch") if name in runs), None)
    if first is None:
        remedy = next((finding.remedy for finding in of if finding.remedy), None)
        return Finding("any", "fault", "no engine runs here", remedy)
    return Finding("any", "ok", f"{first} is the fastest engine that runs here; `bei doctor MODEL` tries a model")


def _as_json(found: Mapping[str, Sequence[Finding]], held: Sequence[Cache], freed: int | None) -> str:
    sizes = {cache.name: {"bytes": cache.size, "unused_bytes": _unused(cache)} for cache in held}
    told = {name: [asdict(finding) for finding in group] for name, group in found.items()}
    return json.dumps({**told, "caches": sizes, "freed_bytes": freed}, indent=2)


def _unused(cache: Cache) -> int:
    return sum(entry.size for entry in cache.prunable)


def _in_words(found: Mapping[str, Sequence[Finding]], held: Sequence[Cache], freed: int | None) -> str:
    lines = []
    for name, group in found.items():
        lines += [name, *(line for finding in group for line in _lines(finding))]
    lines += ["caches", *(_of_cache(cache) for cache in held)]
    if freed is not None:
        lines.append(f"  freed    {bytes_in_words(freed)}")
    elif any(cache.prunable for cache in held):
        lines.append(f"           {bytes_in_words(sum(map(_unused, held)))} are unused: bei doctor --prune")
    return "\n".join(map(printable, lines))


def _lines(finding: Finding) -> Iterable[str]:
    yield f"  {finding.state:8} {finding.subject:10} {finding.says}"
    if finding.remedy:
        yield f"  {'':19} {finding.remedy}"


def _of_cache(cache: Cache) -> str:
    unused = f", {bytes_in_words(_unused(cache))} unused" if cache.prunable else ""
    return f"  {bytes_in_words(cache.size):>10}  {cache.name}: {caches.NAMES[cache.name]}{unused}"
