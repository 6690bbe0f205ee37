"""Two models in one server against one model alone: their throughput together, and the time of a lone query beside a
bulk.

Run: python -m benchmarks.several_models
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import click
import httpx
import orjson
import uvloop
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bei.samples.mixes import text_sets
from benchmarks.http_load import ROOT
from benchmarks.processes import Tree, served
from benchmarks.soak import percentiles
from benchmarks.wire import Ask, Http1

LIMIT = 120.0
TEXTS = 64  # of a bulk request
CLIENTS = 8  # of bulk, for one model or for both
WARM_UP = 1.0  # seconds before a measurement
PAUSE = 0.02  # seconds between two lone queries


def copies(work: Path, names: Sequence[str]) -> list[Path]:
    """The config of the default model once for each name."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    made = []
    for name in names:
        config["trt_llm"].setdefault("runtime", {})["served_model_name"] = name
        made.append(work / f"{name}.json")
        made[-1].write_text(json.dumps(config))
    return made


def bulk(model: str, texts: Sequence[str]) -> Ask:
    return Ask("/v1/embeddings", orjson.dumps({"input": list(texts), "model": model, "encoding_format": "base64"}))


@asynccontextmanager
async def loaded(server: Tree, models: Sequence[str], texts: Sequence[str]) -> AsyncIterator[None]:
    """Clients ask for bulks meanwhile, and have done so for WARM_UP seconds before."""
    ended = asyncio.Event()

    async def client(number: int) -> None:
        http, at = Http1(server.port), number * TEXTS
        while not ended.is_set():
            some = [texts[(at + i) % len(texts)] for i in range(TEXTS)]
            await http.ask(bulk(models[number % len(models)], some), LIMIT)
            at += CLIENTS * TEXTS
        http.close()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        await asyncio.sleep(WARM_UP)
        yield
        ended.set()


async def tokens(server: Tree) -> float:
    """The number that the engines have read, in batches that have ended."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{server.port}/metrics")).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "bei_engine_tokens_total")


async def throughput(server: Tree, models: Sequence[str], texts: Sequence[str], seconds: float) -> tuple[float, float]:
    """Tokens a second, and microseconds of CPU per token. Batches count, not requests: of those that have not ended
    more is done with two models than with one."""
    async with loaded(server, models, texts):
        before, cpu, started = await tokens(server), server.cpu(), time.monotonic()
        await asyncio.sleep(seconds)
        read, took = await tokens(server) - before, time.monotonic() - started
        return read / took, 1e6 * (server.cpu() - cpu) / read


async def lone(server: Tree, model: str, beside: str, texts: Sequence[str], seconds: float) -> list[float]:
    """Seconds of each lone query to a model beside a bulk to one."""
    http, took = Http1(server.port), []
    async with loaded(server, [beside], texts):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            took.append((await http.ask(bulk(model, ["What is Deep Learning?"]), LIMIT)).seconds)
            await asyncio.sleep(PAUSE)
    http.close()
    return took


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Duration of each measurement.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/bei-several"), show_default=True)
def main(rounds: int, seconds: float, work: Path) -> None:
    work.mkdir(exist_ok=True)
    texts = text_sets()["mixed"]
    first, second = copies(work, ("a", "b"))
    with ExitStack() as stack:
        one = stack.enter_context(served(str(first), log=work / "one.log"))
        two = stack.enter_context(served(str(first), "--config", str(second), log=work / "two.log"))
        rates: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}
        waits: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(rounds):
            rates["one"].append(uvloop.run(throughput(one, ["a"], texts, seconds)))
            rates["two"].append(uvloop.run(throughput(two, ["a", "b"], texts, seconds)))
            waits["one"] += uvloop.run(lone(one, "a", "a", texts, seconds))
            waits["two"] += uvloop.run(lone(two, "b", "a", texts, seconds))
    rate, cpu = map(statistics.median, zip(*rates["one"], strict=True))
    ratios = [(of_two[0] / of_one[0], of_two[1] / of_one[1]) for of_one, of_two in zip(*rates.values(), strict=True)]
    of_rate, of_cpu = map(statistics.median, zip(*ratios, strict=True))
    click.echo(f"one model: {rate:.0f} tokens a second, {cpu:.1f} us of CPU per token")
    click.echo(f"two models: {of_rate:.3f} of the tokens, {of_cpu:.3f} of the CPU")
    for name, took in waits.items():
        found = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in percentiles(took).items())
        click.echo(f"a lone query beside a bulk, {name}: {found}")


if __name__ == "__main__":
    main()
