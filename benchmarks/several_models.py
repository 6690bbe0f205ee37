"""Two models in one server against one model alone: their throughput together, and the time of a lone query beside a
bulk.

Run: python -m benchmarks.several_models
"""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import orjson
import uvloop
import yaml

from benchmarks.http_load import ROOT
from benchmarks.processes import Tree, served
from benchmarks.soak import percentiles
from benchmarks.texts import text_sets
from benchmarks.wire import Ask, Http1

LIMIT = 120.0
TEXTS = 64  # of a bulk request
CLIENTS = 4  # of bulk for each model
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


async def throughput(server: Tree, models: Sequence[str], texts: Sequence[str], seconds: float) -> float:
    """Tokens a second of all clients."""
    tokens, until = 0, time.monotonic() + seconds

    async def client(number: int) -> None:
        nonlocal tokens
        http, at = Http1(server.port), number * TEXTS
        while time.monotonic() < until:
            some = [texts[(at + i) % len(texts)] for i in range(TEXTS)]
            reply = await http.ask(bulk(models[number % len(models)], some), LIMIT)
            if time.monotonic() < until:
                tokens += orjson.loads(reply.body)["usage"]["total_tokens"]
            at += CLIENTS * TEXTS
        http.close()

    await asyncio.gather(*map(client, range(2 * CLIENTS)))
    return tokens / seconds


async def lone(server: Tree, model: str, beside: str, texts: Sequence[str], seconds: float) -> list[float]:
    """Seconds of each lone query to a model beside a bulk to one."""
    loading = asyncio.ensure_future(throughput(server, [beside], texts, seconds))
    http, took = Http1(server.port), []
    await asyncio.sleep(0.5)
    while not loading.done():
        took.append((await http.ask(bulk(model, ["What is Deep Learning?"]), LIMIT)).seconds)
        await asyncio.sleep(PAUSE)
    http.close()
    await loading
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
        rates: dict[str, list[float]] = {"one": [], "two": []}
        waits: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(rounds):
            rates["one"].append(uvloop.run(throughput(one, ["a"], texts, seconds)))
            rates["two"].append(uvloop.run(throughput(two, ["a", "b"], texts, seconds)))
            waits["one"] += uvloop.run(lone(one, "a", "a", texts, seconds))
            waits["two"] += uvloop.run(lone(two, "b", "a", texts, seconds))
    ratio = statistics.median(b / a for a, b in zip(rates["one"], rates["two"], strict=True))
    click.echo(f"tokens a second: {statistics.median(rates['one']):.0f} of one model; {ratio:.3f} of it of two")
    for name, took in waits.items():
        found = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in percentiles(took).items())
        click.echo(f"a lone query beside a bulk, {name}: {found}")


if __name__ == "__main__":
    main()
