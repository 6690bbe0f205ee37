"""The latency of one query: on an idle server, beside a bulk job, and among ten times the requests that the server
answers.

The query is a short text, sent repeatedly, one at a time. Ten times the capacity arrives as a Poisson process that does
not wait for answers; those requests are single passages. Run: python -m benchmarks.overload
"""

import asyncio
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import uvloop

from bei.samples.mixes import text_sets
from benchmarks.cpu import processor
from benchmarks.processes import served
from benchmarks.soak import listed, percentiles
from benchmarks.wire import Ask, Http1, Lost, Reply

PATH = "/v1/embeddings"
QUERY = Ask(PATH, orjson.dumps({"input": "What is Deep Learning?"}))
TIMES = 10  # times the capacity
PASSAGE_CLIENTS = 32  # that measure the capacity
BULK_IN_FLIGHT = 4
PAUSE = 0.02  # seconds between two queries
LIMIT = 120.0  # seconds after which a request hangs

Ends = Counter[str]


async def queries(port: int, until: Awaitable[Any]) -> tuple[dict[str, Any], Any]:
    """How queries ended until `until` is done, the seconds of those answered with 200, and the result of `until`."""
    http, during = Http1(port), asyncio.ensure_future(until)
    seconds: list[float] = []
    ends: Ends = Counter()
    while not during.done():
        end, reply = await ended(http, QUERY)
        ends[end] += 1
        if end == "200":
            seconds.append(reply.seconds)
        await asyncio.sleep(PAUSE)
    http.close()
    return {"ends": ends, **percentiles(seconds)}, await during


def elsewhere(pool: Executor, work: Callable[..., Coroutine], *arguments: Any) -> Awaitable[Any]:
    """Runs in another process, so that this one only handles its queries."""
    return asyncio.get_running_loop().run_in_executor(pool, _run, work, arguments)


def _run(work: Callable[..., Coroutine], arguments: tuple) -> Any:
    return uvloop.run(work(*arguments))


async def ended(http: Http1, ask: Ask) -> tuple[str, Reply | None]:
    """The end of a request: its status, hung or lost."""
    try:
        reply = await http.ask(ask, LIMIT)
    except TimeoutError:
        return "hung", None
    except Lost:
        return "lost", None
    return str(reply.status), reply


async def bulk(port: int, texts: int, a_request: int) -> Ends:
    """Short texts, some requests in flight; a client that is told to come back does so."""
    http, pool, left = Http1(port), text_sets(scale=10)["short"], list(range(0, texts, a_request))
    ends: Ends = Counter()

    async def sender() -> None:
        while left:
            start = left.pop()
            several = [pool[i % len(pool)] for i in range(start, min(start + a_request, texts))]
            ask = Ask(PATH, orjson.dumps({"input": several, "encoding_format": "base64"}))
            while (end := (await ended(http, ask))[0]) == "429":
                ends[end] += 1
                await asyncio.sleep(1)
            ends[end] += 1

    await asyncio.gather(*(sender() for _ in range(BULK_IN_FLIGHT)))
    http.close()
    return ends


def passages() -> list[Ask]:
    return [Ask(PATH, orjson.dumps({"input": text})) for text in text_sets(scale=4)["passage"]]


async def capacity(port: int, seconds: float) -> float:
    """Passages per second."""
    http, asks, until, answered = Http1(port), passages(), time.monotonic() + seconds, 0

    async def client(number: int) -> None:
        nonlocal answered
        while time.monotonic() < until:
            end, _ = await ended(http, asks[number % len(asks)])
            number += PASSAGE_CLIENTS
            answered += end == "200" and time.monotonic() < until

    await asyncio.gather(*(client(number) for number in range(PASSAGE_CLIENTS)))
    http.close()
    return answered / seconds


async def flood(port: int, rate: float, seconds: float) -> dict[str, Any]:
    """The ends of requests, `rate` passages per second."""
    http, asks, rng = Http1(port), passages(), np.random.default_rng(0)
    ends: Ends = Counter()
    admitted: list[float] = []
    refused: list[float] = []
    retry_after: list[float] = []
    tasks: set[asyncio.Task] = set()

    async def one(ask: Ask) -> None:
        end, reply = await ended(http, ask)
        ends[end] += 1
        if end == "200":
            admitted.append(reply.seconds)
        elif end == "429":
            refused.append(reply.seconds)
            retry_after.append(float(reply.headers.get("retry-after", "nan")))

    began = due = time.monotonic()
    while due < began + seconds:
        await asyncio.sleep(due - time.monotonic())
        task = asyncio.create_task(one(asks[rng.integers(len(asks))]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # Passages that cannot be sent in time are skipped.
        due = max(due + rng.exponential(1 / rate), time.monotonic() - 1)
    sent = time.monotonic() - began
    await asyncio.gather(*tasks)
    http.close()
    return {
        "sent_a_second": sum(ends.values()) / sent,
        "admitted": percentiles(admitted),
        "refused": percentiles(refused),
        "retry_after": percentiles(retry_after),
        "ends": ends,
    }


async def measure(port: int, pool: Executor, texts: int, a_request: int, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["idle"], _ = await queries(port, asyncio.sleep(seconds))
    show("a query, idle", found["idle"])

    began = time.monotonic()
    found["beside_bulk"], ends = await queries(port, elsewhere(pool, bulk, port, texts, a_request))
    found["bulk"] = {"ends": ends, "texts_a_second": texts / (time.monotonic() - began)}
    show("a query, beside bulk", found["beside_bulk"])
    click.echo(f"  the bulk: {found['bulk']['texts_a_second']:.0f} texts per second, requests {listed(ends)}")

    found["capacity"] = await elsewhere(pool, capacity, port, seconds)
    rate = TIMES * found["capacity"]
    found["among_flood"], flooded = await queries(port, elsewhere(pool, flood, port, rate, seconds))
    found["flood"] = flooded
    show(f"a query, at {TIMES} x", found["among_flood"])
    click.echo(f"  {found['capacity']:.0f} passages per second are answered, {flooded['sent_a_second']:.0f} were sent")
    show("  those admitted", {"ends": flooded["ends"], **flooded["admitted"]})
    show("  those refused, 429", {"ends": {}, **flooded["refused"]})
    share, after = flooded["ends"]["429"] / flooded["ends"].total(), flooded["retry_after"]
    seconds_after = ", ".join(f"{key} {value:.0f} s" for key, value in after.items())
    click.echo(f"  {share:.0%} got 429, with Retry-After {seconds_after or 'nowhere'}")
    found["after"], _ = await queries(port, asyncio.sleep(2))
    show("a query, afterwards", found["after"])
    return found


def show(name: str, figures: dict[str, Any]) -> None:
    times = " ".join(f"{1000 * figures.get(key, np.nan):9.1f}" for key in ("p50", "p99", "max"))
    click.echo(f"  {name:22} {times}  {listed(figures['ends'])}")


@click.command(context_settings={"show_default": True})
@click.option("--workers", default="1,2,4", help="numbers of HTTP workers to try")
@click.option("--seconds", default=20.0, help="of each part but the bulk")
@click.option("--bulk-texts", default=100_000)
@click.option("--bulk-request", default=1000, help="texts per request")
@click.option("--config", default="config.yaml", help="an embedding model")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for the servers' logs")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(
    workers: str, seconds: float, bulk_texts: int, bulk_request: int, config: str, work: Path, json_file: Path | None
) -> None:
    """p50, p99 and max of single queries, in ms."""
    figures = {"processor": processor(), "workers": {}}
    for count in workers.split(","):
        click.echo(f"{count} workers: {'p50':>22} {'p99':>9} {'max':>9}")
        spawned = multiprocessing.get_context("spawn")
        with (
            served(config, "--workers", count, log=work / "overload.log") as server,
            ProcessPoolExecutor(1, mp_context=spawned) as pool,
        ):
            found = uvloop.run(measure(server.port, pool, bulk_texts, bulk_request, seconds))
        figures["workers"][count] = found
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
