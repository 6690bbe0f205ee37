"""The command `bei bench`."""

import json
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click
import orjson

from bei import __version__, options
from bei.bench import apis, picture, results
from bei.bench.connection import Place
from bei.bench.load import Figures, Load, Target, Window, measure
from bei.bench.results import Rounds
from bei.bench.texts import texts
from bei.errors import SetupError, one_line, printable, short
from bei.progress import Bar
from bei.samples.mixes import MIXES, Mix

_CLIENTS = "1,8,64"
_MOST_CLIENTS, _MOST_RATE = 4096, 100_000.0


@click.command(
    cls=options.Command,
    examples=(
        "bei bench http://127.0.0.1:8080",
        "bei bench ours=http://127.0.0.1:8080 theirs=http://127.0.0.1:7997 --plot curve.svg --json curve.json",
        "bei bench http://127.0.0.1:8080 --rates 50,100,200 --lengths lognormal:120:0.8 --seconds 20",
        "bei bench http://127.0.0.1:8080 --texts queries.txt --batch 4 --concurrency 16",
    ),
)
@click.argument("servers", metavar="[NAME=]URL...", nargs=-1, required=True)
@click.option("--api", type=click.Choice(list(apis.APIS)), help="The API to use. Unset: the first that answers.")
@click.option("--model", help="The model's name in requests. Unset: the first that the server lists.")
@click.option("--api-key", envvar="BEI_BENCH_API_KEY", help="A bearer token; safer as BEI_BENCH_API_KEY.")
@click.option(
    "--mix",
    type=click.Choice(MIXES),
    help="Texts of STS-B: short (14 tokens), passage (130), long (450), or mixed (60, 30 and 10 % of them).  "
    "[default: mixed]",
)
@click.option(
    "--texts",
    "file",
    type=click.Path(path_type=Path),
    help="A .txt, .jsonl, .csv or .tsv file of texts in place of a mix.",
)
@click.option("--lengths", help="Numbers of words in place of a mix: 120, 10-500, or lognormal:MEDIAN:SIGMA.")
@click.option("--batch", type=click.IntRange(1, 2048), default=1, show_default=True, help="The texts of a request.")
@click.option(
    "--concurrency", metavar="LIST", help=f"Numbers of clients that wait for their answers.  [default: {_CLIENTS}]"
)
@click.option(
    "--rates", metavar="LIST", help="Requests a second, sent whether or not answers come, in place of --concurrency."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=5,
    show_default=True,
    help="The counted seconds of each round.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(0, 600),
    default=1,
    show_default=True,
    help="The seconds before them, not counted.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Rounds of each load, in which the servers take turns.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 3600),
    default=60,
    show_default=True,
    help="Seconds after which a request without an answer is an error.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of random lengths and moments.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Write all figures into this file, too; - prints them in place of the table.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Draw latency by throughput into this .png or .svg file. Repeatable.",
)
def bench(
    servers: Sequence[str],
    api: str | None,
    model: str | None,
    api_key: str | None,
    mix: Mix | None,
    file: Path | None,
    lengths: str | None,
    batch: int,
    concurrency: str | None,
    rates: str | None,
    seconds: float,
    warmup: float,
    rounds: int,
    timeout: float,
    seed: int,
    json_file: Path | None,
    plot: Sequence[Path],
) -> None:
    """Measure the throughput and the latency of one server or several, ours or another's, by turns.

    A server speaks OpenAI's, TEI's, Cohere's or infinity's API. The first one is the base of the ratios. Load only
    servers that are yours.
    """
    picture.check(plot)
    loads = list(_loads(concurrency, rates))
    pool, window = texts(mix, file, lengths, seed), Window(warmup, seconds, timeout)
    targets = [_target(server, api, model, api_key, pool, batch) for server in servers]
    if len({target.name for target in targets}) < len(targets):
        raise SetupError("two servers have one name; give them names: ours=http://… theirs=http://…")
    found = _measured(targets, loads, window, rounds, seed)
    told = {
        "bei": __version__,
        "window": vars(window),
        "texts": len(pool),
        "batch": batch,
        "results": results.as_json(found),
    }
    _write(told, found, json_file)
    if plot:
        picture.draw(found, plot)


def _measured(targets: Sequence[Target], loads: Sequence[Load], window: Window, rounds: int, seed: int) -> Rounds:
    """The servers take turns in each round, so that a change of the machine's speed affects all of them alike."""
    found: dict[Load, dict[str, list[Figures]]] = {load: {one.name: [] for one in targets} for load in loads}
    each = window.warmup + window.counted
    with Bar(each * len(loads) * rounds * len(targets), "s", name="bench") as bar:
        for load in loads:
            for number in range(rounds):
                for target in targets:
                    found[load][target.name].append(measure(target, load, window, seed + number))
                    bar.add(each)
    return found


def _write(told: Mapping[str, Any], found: Rounds, file: Path | None) -> None:
    text = json.dumps(told, indent=1)
    click.echo(text if str(file) == "-" else results.table(found))
    if file is not None and str(file) != "-":
        try:
            file.write_text(text + "\n")
        except OSError as exc:
            raise SetupError(f"--json {file} cannot be written: {one_line(exc)}") from None


def _loads(concurrency: str | None, rates: str | None) -> Iterator[Load]:
    if concurrency is not None and rates is not None:
        raise SetupError("--concurrency and --rates are two kinds of load; leave one out")
    if rates is not None:
        yield from (Load(rate=value) for value in _numbers("--rates", rates, _MOST_RATE))
        return
    for value in _numbers("--concurrency", concurrency or _CLIENTS, _MOST_CLIENTS):
        if value != int(value):
            raise SetupError(f"--concurrency {short(concurrency)}: clients are whole numbers")
        yield Load(clients=int(value))


def _numbers(flag: str, listed: str, most: float) -> list[float]:
    words = listed.split(",")
    if all(re.fullmatch(r"\d+(\.\d+)?", word) and 0 < float(word) <= most for word in words):
        return list(dict.fromkeys(map(float, words)))
    raise SetupError(f"{flag} {short(listed)}: use numbers up to {most:g} between commas, such as {_CLIENTS}")


def _target(
    server: str, api: str | None, model: str | None, api_key: str | None, pool: Sequence[str], batch: int
) -> Target:
    """Raises SetupError for an address that is none, or a server that does not answer."""
    name, url = _named(server)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    found, its_model = apis.find(url, api, model, headers)
    click.echo(
        printable(f"{name}: {found.name} at {url.geturl().rstrip('/')}{found.path}, model {its_model}"), err=True
    )
    tls = ssl.create_default_context() if url.scheme == "https" else None
    place = Place(url.hostname or "", url.port or (443 if tls else 80), tls, headers)
    path = url.path.rstrip("/") + found.path
    bodies = (orjson.dumps(found.body(some, its_model)) for some in _batches(pool, batch))
    return Target(name, place, [place.request(path, body) for body in bodies], batch)


def _named(server: str) -> tuple[str, SplitResult]:
    """The name and the address of `NAME=URL`; an address is its own name."""
    name, equals, address = server.partition("=")
    if not equals or "://" in name:
        name = address = server
    try:
        url = urlsplit(address if "://" in address else f"http://{address}")
        known = url.scheme in ("http", "https") and url.hostname and (url.port or 1)
    except ValueError:
        known = None
    if not known:
        raise SetupError(f"{short(server)} is no address of a server; write http://host:port, or name=http://host:port")
    return name, url


def _batches(pool: Sequence[str], size: int) -> Iterator[list[str]]:
    """Requests of `size` texts each, beginning again where the texts end."""
    count = -(-len(pool) // size)
    endless = (pool[i % len(pool)] for i in range(count * size))
    while some := list(islice(endless, size)):
        yield some
