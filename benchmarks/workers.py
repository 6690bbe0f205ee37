"""The gain of HTTP workers: short texts from 64 clients to 1, 2 and 4 workers, interleaved round by round.

The engine is the null engine, which is never the limit; the processors are: those of the workers, of the queue, and of
the clients on the same machine. Run: python -m benchmarks.workers
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from benchmarks.cpu import processor
from benchmarks.http_load import cpu_seconds, http1
from benchmarks.processes import Tree, served

Round = dict[str, float]
PARTS = ("server", "engine", "workers")


def cpu(server: Tree) -> Round:
    """Seconds of each part; a single worker is the server's own process."""
    engine = server.engine()
    processes = ([server.process.pid], [] if engine is None else [engine], server.workers())
    return dict(zip(PARTS, map(cpu_seconds, processes), strict=True))


def one_round(server: Tree, clients: int, requests: int) -> Round:
    """Requests per second, and milliseconds of CPU per request of each part."""
    before = cpu(server)
    load = http1(server, clients, requests)
    asked = requests // clients * clients + 10 * clients  # the warm-up of http1 sends 10 from each client
    return {"rate": load.rate} | {part: 1000 * (after - before[part]) / asked for part, after in cpu(server).items()}


def medians(rounds: list[Round], first: list[Round]) -> Round:
    """Medians over the rounds; `ratio` is to the rate of the `first`, pair by pair."""
    ratios = [one["rate"] / other["rate"] for one, other in zip(rounds, first, strict=True)]
    figures = {name: [one[name] for one in rounds] for name in rounds[0]} | {"ratio": ratios}
    return {name: round(float(np.median(of)), 3) for name, of in figures.items()}


@click.command(context_settings={"show_default": True})
@click.option("--workers", default="1,2,4")
@click.option("--rounds", default=5)
@click.option("--clients", default=64)
@click.option("--requests", default=5000, help="a round, of each server")
@click.option("--engine", default="null")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for the servers' logs")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(
    workers: str, rounds: int, clients: int, requests: int, engine: str, work: Path, json_file: Path | None
) -> None:
    """Throughput of short texts, and the CPU of each process."""
    found: dict[str, list[Round]] = {count: [] for count in workers.split(",")}
    with ExitStack() as stack:
        flags = ("config.yaml", "--engine", engine, "--workers")
        servers = {
            count: stack.enter_context(served(*flags, count, log=work / f"workers-{count}.log")) for count in found
        }
        for _ in range(rounds):
            for count, server in servers.items():
                found[count].append(one_round(server, clients, requests))
    first, *_ = found.values()
    figures = {count: medians(of, first) for count, of in found.items()}
    click.echo(f"{'workers':>7} {'requests/s':>10} {'ratio':>6}   ms of CPU per request: {', '.join(PARTS)}")
    for count, row in figures.items():
        parts = ", ".join(f"{row[part]:.2f}" for part in PARTS)
        click.echo(f"{count:>7} {row['rate']:10.0f} {row['ratio']:5.2f}x   {parts}")
    if json_file:
        machine = {"processor": processor(), "cores": os.cpu_count(), "engine": engine, "clients": clients}
        json_file.write_text(json.dumps(machine | {"workers": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
