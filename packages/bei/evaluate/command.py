"""The command `bei eval`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bei import logs, options
from bei.engines.calibration import texts_of
from bei.errors import SetupError, printable
from bei.evaluate import mteb, stsb
from bei.evaluate.compare import WORDS, Comparison, Measure, compare
from bei.evaluate.statistics import Estimate
from bei.evaluate.verdict import broken, in_words, verdict
from bei.files import expanded
from bei.settings import ModelSettings, several

_BOUNDED: tuple[Measure, ...] = ("cosine", "neighbors", "order", "labels", "entities")
_BELOW = 1  # the exit status


@click.command(
    cls=options.Command,
    examples=(
        "bei eval ./my-model",
        "bei eval ./my-model --texts my-texts.txt --precision int8 --min-neighbors 0.95",
        "bei eval --url http://127.0.0.1:8080 --min-spearman 0.8",
        "bei eval ./my-model --mteb STS12 --mteb SciFact",
    ),
)
@options.model
@options.config
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    help="Compare this precision with fp32 on the texts of a .txt, .jsonl, .csv or .tsv file.",
)
@click.option(
    "--most-texts",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="The most texts of --texts; the first ones are taken.",
)
@click.option("--url", help="Evaluate this server, by /v1/embeddings, in place of a model.")
@click.option("--mteb", "tasks", multiple=True, help="A task of mteb, in place of STS-B. Repeatable.")
@click.option("--name", default="any", show_default=True, help="The model's name in requests to --url.")
@click.option("--api-key", envvar="BEI_BENCH_API_KEY", help="A bearer token for --url; safer as BEI_BENCH_API_KEY.")
@click.option("--min-spearman", type=click.FloatRange(-1, 1), help="Exit with status 1 if STS-B is below.")
@click.option(
    "--min-cosine", type=click.FloatRange(-1, 1), help="Exit with status 1 if the mean cosine to fp32 is below."
)
@click.option("--min-neighbors", type=click.FloatRange(0, 1), help="The same for the share of neighbors kept.")
@click.option("--min-order", type=click.FloatRange(0, 1), help="The same for the share of pairs whose order is kept.")
@click.option("--min-labels", type=click.FloatRange(0, 1), help="The same for the share of first labels kept.")
@click.option("--min-entities", type=click.FloatRange(0, 1), help="The same for the share of entities kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.log_level
@options.of_settings(ModelSettings)
def evaluate(
    model: str | None,
    config: Path | None,
    texts: Path | None,
    most_texts: int,
    url: str | None,
    tasks: Sequence[str],
    name: str,
    api_key: str | None,
    min_spearman: float | None,
    as_json: bool,
    log_level: str,
    **flags: Any,
) -> None:
    """Measure quality: STS-B's correlation, tasks of mteb, or this precision against fp32 on your own texts.

    With --texts a sentence says whether the precision is fine for them: cosines, neighbors, order, labels or entities
    kept, with intervals that hold 95 % of a bootstrap.
    """
    logs.to_stderr("warning" if log_level == "info" else log_level)
    bounds = {of: bound for of in _BOUNDED if (bound := flags.pop(f"min_{of}")) is not None}
    of_model = [str(given) for given in (model, config and f"--config {config}", texts and "--texts") if given]
    _check([*of_model, *options.given(flags)], url, texts, tasks)
    _check_bounds(texts, tasks, min_spearman, bounds)
    if texts is not None:
        found = compare(several.one(model, config, **flags), _read(texts, most_texts))
        _tell(_of_comparison(found) if as_json else _in_words(found), broken(found.measures, bounds), as_json)
    elif tasks:
        if url is not None:
            scores = mteb.of_server(url.rstrip("/"), name, api_key, tasks)
        else:
            scores = mteb.of_model(several.one(model, config, **flags), tasks)
        _tell(scores if as_json else "\n".join(f"{task}: {score:.4f}" for task, score in scores.items()), [], as_json)
    else:
        if url is not None:
            headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
            where, spearman = url, stsb.of_server(url.rstrip("/"), name, headers)
        else:
            where, spearman = stsb.of_model(several.one(model, config, **flags))
        words = f"STS-B: Spearman {spearman.mean:.4f} [{spearman.least:.4f}, {spearman.most:.4f}], {where}"
        told = {"where": where, "spearman": asdict(spearman)} if as_json else words
        below = min_spearman is not None and spearman.mean < min_spearman
        _tell(told, [f"--min-spearman {min_spearman:g}: it is {spearman.mean:.4f}"] if below else [], as_json)


def _check(of_model: Sequence[str], url: str | None, texts: Path | None, tasks: Sequence[str]) -> None:
    """Raises SetupError for words about a model in this process beside a server, and for two evaluations."""
    if url is not None and of_model:
        raise SetupError(f"--url evaluates a server; {of_model[0]} is about a model in this process: leave one out")
    if tasks and texts is not None:
        raise SetupError("--texts and --mteb are two evaluations; leave one out")


def _check_bounds(
    texts: Path | None, tasks: Sequence[str], min_spearman: float | None, bounds: Mapping[Measure, float]
) -> None:
    """Raises SetupError for bounds of another evaluation."""
    if bounds and texts is None:
        raise SetupError(f"--min-{next(iter(bounds))} needs --texts, the texts that are compared")
    if min_spearman is not None and (texts or tasks):
        raise SetupError("--min-spearman is a bound of STS-B; leave --texts and --mteb out")


def _read(file: Path, most: int) -> list[str]:
    """The first texts, each once: a text is the nearest neighbor of its copy in any precision."""
    found: dict[str, None] = {}
    for text in texts_of(expanded(file), "--texts"):
        found[text] = None
        if len(found) == most:
            break
    return list(found)


def _of_comparison(found: Comparison) -> dict[str, Any]:
    return {**asdict(found), "verdict": verdict(found)}


def _in_words(found: Comparison) -> str:
    lines = [f"{found.ours} against {found.exact}, {found.texts} texts"]
    lines += [f"  {_named(name, of, found.worst)}" for name, of in found.measures.items()]
    return "\n".join([*lines, verdict(found)])


def _named(name: Measure, of: Estimate, worst: float | None) -> str:
    at_worst = f", worst {worst:.5f}" if worst is not None and name in ("cosine", "scores") else ""
    return f"{WORDS[name]}: {in_words(name, of)}{at_worst}"


def _tell(found: object, faults: Sequence[str], as_json: bool) -> None:
    """Prints what was found; ends with a status of its own if a bound was broken."""
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(map(printable, str(found).split("\n"))))
    for fault in faults:
        click.echo(f"bei: {printable(fault)}", err=True)
    if faults:
        sys.exit(_BELOW)
