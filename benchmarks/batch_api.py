"""OpenAI's Batch API: one live query at a time beside a batch of 50,000 lines, idle, and beside a bulk, in turns; and
the client's whole cycle of a batch whose server is killed in the middle, compared with the same batch left alone.

A line is a short text. Run: python -m benchmarks.batch_api
"""

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import orjson
import uvloop
from openai import OpenAI
from openai.types import Batch

from bei.samples.mixes import text_sets
from benchmarks.cpu import processor
from benchmarks.overload import PATH, bulk, elsewhere, queries, show
from benchmarks.processes import Tree, served, start, stop

_FINAL = ("completed", "failed", "expired", "cancelled")


def client_of(server: Tree) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def begun(client: OpenAI, lines: int) -> Batch:
    """A batch that the server has taken."""
    pool = text_sets(scale=10)["short"]
    bodies = ({"input": pool[i % len(pool)], "encoding_format": "base64"} for i in range(lines))
    rows = ({"custom_id": f"r{i}", "method": "POST", "url": PATH, "body": body} for i, body in enumerate(bodies))
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    sent = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=sent.id, endpoint=PATH, completion_window="24h")


def until(client: OpenAI, id: str, done: int | None = None) -> Batch:
    """Waits until so many lines are answered, or until the end."""
    while (batch := client.batches.retrieve(id)).status not in _FINAL:
        if done is not None and batch.request_counts.completed >= done:
            break
        time.sleep(0.05)
    return batch


async def beside(server: Tree, pool: Executor, lines: int, seconds: float, rounds: int) -> dict[str, Any]:
    """The seconds of queries in each situation, one round after the other."""
    found: dict[str, Any] = {}
    with client_of(server) as client:
        for _ in range(rounds):
            for name in ("idle", "beside a bulk", "beside a batch"):
                during: Any = None
                if name == "beside a bulk":
                    during = elsewhere(pool, _bulk_for, server.port, seconds)
                elif name == "beside a batch":
                    batch = begun(client, lines)
                    until(client, batch.id, 1)
                figures, _ = await queries(server.port, during or asyncio.sleep(seconds))
                show(f"a query, {name}", figures)
                found.setdefault(name, []).append(figures)
                if name == "beside a batch":
                    client.batches.cancel(batch.id)
                    ended = until(client, batch.id)
                    rate = ended.request_counts.completed / (ended.cancelling_at - ended.in_progress_at + 1)
                    click.echo(f"  the batch: {rate:.0f} lines per second")
                    found.setdefault("lines_a_second", []).append(rate)
    return found


async def _bulk_for(port: int, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await bulk(port, 10_000_000, 1000)
    except TimeoutError:
        pass


def killed(folder: Path, lines: int) -> dict[str, Any]:
    """A batch on the null engine whose server is killed in the middle, and its twin that is left alone."""
    flags = ("--engine", "null", "--batch-dir")
    shutil.rmtree(folder, ignore_errors=True)
    one, twin, log = folder / "one", folder / "twin", folder / "server.log"
    server = start("config.yaml", *flags, str(one), log=log)
    with client_of(server) as client:
        began = time.monotonic()
        batch = begun(client, lines)
        taken = time.monotonic() - began
        half = until(client, batch.id, lines // 2)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    shutil.copytree(one, twin)
    for left in (twin / "jobs" / batch.id).iterdir():  # of the twin only the order is left
        if left.name != "order.json":
            left.unlink()
    contents, seconds = [], []
    for place in (one, twin):
        with served("config.yaml", *flags, str(place), log=log) as server, client_of(server) as client:
            again = time.monotonic()
            ended = until(client, batch.id)
            seconds.append(time.monotonic() - again)
            contents.append(client.files.content(ended.output_file_id).content)
            stop(server)
    names = [json.loads(row)["custom_id"] for row in contents[0].splitlines()]
    return {
        "lines": lines,
        "upload_and_order_seconds": taken,
        "lines_before_the_kill": half.request_counts.completed,
        "seconds_after_it": seconds[0],
        "seconds_of_the_twin": seconds[1],
        "each_once_in_order": names == [f"r{i}" for i in range(lines)],
        "same_bytes": contents[0] == contents[1],
        "bytes": len(contents[0]),
    }


@click.command(context_settings={"show_default": True})
@click.option("--lines", default=50_000)
@click.option("--seconds", default=10.0, help="of each situation in a round")
@click.option("--rounds", default=3)
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for logs and batches")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(lines: int, seconds: float, rounds: int, work: Path, json_file: Path | None) -> None:
    """p50, p99 and max of single queries, in ms; then the figures of the batch that was cut."""
    figures: dict[str, Any] = {"processor": processor()}
    spawned, folder = multiprocessing.get_context("spawn"), work.absolute() / "batch-api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chmod(folder, 0o700)
    with (
        served("config.yaml", "--batch-dir", str(folder / "live"), log=folder / "live.log") as server,
        ProcessPoolExecutor(1, mp_context=spawned) as pool,
    ):
        figures["beside"] = uvloop.run(beside(server, pool, lines, seconds, rounds))
    figures["killed"] = killed(folder / "killed", lines)
    for name, value in figures["killed"].items():
        click.echo(f"  {name.replace('_', ' '):28} {value if isinstance(value, int) else round(value, 2)}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
