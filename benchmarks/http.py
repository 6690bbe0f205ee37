"""Our server against infinity's over HTTP: one short text per request from 1, 8 and 64 clients, interleaved round by
round.

The clients share the machine with the server, so requests per second understate both. The server's share of our CPU is
that of its main thread, which reads, tokenizes and answers; the engine has threads of its own. Run: python -m
benchmarks.http
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import httpx
import numpy as np

from bei.samples.mixes import text_sets
from benchmarks.cpu import minilm, processor
from benchmarks.http_load import BODY, JSON, Load, Running, free_port, http1

CLIENTS = (1, 8, 64)
OURS = {
    "ours bf16": ("--engine", "native", "--precision", "bf16"),
    "ours int8": ("--engine", "native", "--precision", "int8"),
}
PEER = "infinity torch fp32"
FIELDS = ("rate", "p50", "p99", "cpu", "main_cpu")
READY = 120.0  # seconds


@contextmanager
def serving(command: list[str], port: int) -> Iterator[Running]:
    """A server, once it has answered."""
    started = time.perf_counter()
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None or time.perf_counter() - started > READY:
                raise click.ClickException(f"no answer from {' '.join(command)}")
            time.sleep(0.01)
        yield Running(process, port, time.perf_counter() - started)
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        return httpx.post(url, content=BODY, headers=JSON, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def commands(work: Path, peers_python: Path) -> dict[str, tuple[list[str], int]]:
    found = {}
    bei = [sys.executable, "-m", "bei.cli", "serve", "--config", "config.yaml"]
    for name, flags in OURS.items():
        port = free_port()
        found[name] = ([*bei, "--port", str(port), *flags], port)
    if peers_python.exists():
        port = free_port()
        infinity = [str(peers_python.with_name("infinity_emb")), "v2", "--model-id", str(minilm(work / "minilm"))]
        flags = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--url-prefix", "/v1"]
        found[PEER] = ([*infinity, *flags, "--port", str(port), "--host", "127.0.0.1"], port)
    return found


def soak(server: Running) -> list[float]:
    """Resident MB after each 2,500 of 10,000 mixed texts, 50 per request."""
    texts, resident = text_sets(scale=125)["mixed"], []
    with httpx.Client(timeout=READY) as client:
        for start in range(0, len(texts), 50):
            body = {"input": texts[start : start + 50], "encoding_format": "base64"}
            client.post(f"http://127.0.0.1:{server.port}/v1/embeddings", json=body).raise_for_status()
            if (start + 50) % 2500 == 0:
                resident.append(server.resident())
    return resident


def show(clients: int, loads: Mapping[str, list[Load]]) -> dict[str, dict[str, float]]:
    click.echo(f"\n{clients} clients")
    click.echo(f"  {'server':22} {'requests/s':>10} {'ratio':>7} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms a request':>17}")
    peer = loads.get(PEER)
    figures = {}
    for name, of in loads.items():
        row = {field: float(np.median([getattr(load, field) for load in of])) for field in FIELDS}
        if peer:
            row["ratio"] = float(np.median([ours.rate / theirs.rate for ours, theirs in zip(of, peer, strict=True)]))
        ratio = f"{row['ratio']:6.2f}x" if peer else " " * 7
        click.echo(f"  {name:22} {row['rate']:10.0f} {ratio} {row['p50']:8.2f} {row['p99']:8.2f} {row['cpu']:17.3f}")
        figures[name] = row
    for name in OURS:
        click.echo(f"  {name}: {figures[name]['main_cpu'] / figures[name]['cpu']:.0%} of its CPU is the server's")
    return figures


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=5)
@click.option("--requests", default=1500, help="a round, of each server")
@click.option("--peers-python", type=click.Path(path_type=Path), default=".venv-peers/bin/python")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for a copy of the model")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(rounds: int, requests: int, peers_python: Path, work: Path, json_file: Path | None) -> None:
    """Throughput, latency and CPU of whole servers."""
    work.mkdir(exist_ok=True)
    figures: dict = {"processor": processor(), "rounds": rounds, "requests": requests, "clients": {}}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(command, port))
            for name, (command, port) in commands(work, peers_python).items()
        }
        figures["seconds_to_first_answer"] = {name: server.start for name, server in servers.items()}
        for clients in CLIENTS:
            loads: dict[str, list[Load]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    count = requests // 10 if name == PEER or clients == 1 else requests
                    loads[name].append(http1(server, clients, max(count, 2 * clients)))
            figures["clients"][str(clients)] = show(clients, loads)
        figures["resident_mb"] = {name: soak(servers[name]) for name in OURS}
    click.echo(f"\nMB resident after 2,500, 5,000, 7,500 and 10,000 mixed texts: {figures['resident_mb']}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
