"""Our server on a GPU over HTTP: one short text per request, from 1, 8 and 64 clients on separate cores.

Each engine is built ahead of time (`bei build`), then started from its cache; both are timed. Run: python -m
benchmarks.gpu_http --model bge-large
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.gpu import BATCH_TEXTS, BATCH_TOKENS, calibration_texts, machine
from benchmarks.gpu_models import MODELS, folder
from benchmarks.http import CLIENTS, serving
from benchmarks.http_load import ROOT, free_port, http1

ENGINES = {
    "tensorrt bf16": ("tensorrt", "no_quant"),
    "torch bf16": ("torch", "no_quant"),
    "tensorrt fp8": ("tensorrt", "fp8"),
    "torch fp8": ("torch", "fp8"),
}


@contextmanager
def cores(server: bool) -> Iterator[None]:
    """Binds this process, and those that it starts, to the server's cores or to the clients' quarter."""
    every = sorted(os.sched_getaffinity(0))
    clients = max(1, len(every) // 4)
    if len(every) > 1:
        os.sched_setaffinity(0, every[:-clients] if server else every[-clients:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def config(path: Path, quantization: str, calibration: Path, work: Path) -> Path:
    build = {
        "base_model": "encoder",
        "checkpoint_repository": {"source": "LOCAL", "repo": str(path.resolve())},
        "max_num_tokens": BATCH_TOKENS,
        "max_batch_size": BATCH_TEXTS,
        "quantization_type": quantization,
        "quantization_config": {"calib_dataset": str(calibration.resolve()), "calib_size": 512},
    }
    file = work / f"gpu-{quantization}.yaml"
    file.write_text(yaml.safe_dump({"trt_llm": {"build": build}}))
    return file


def measure(engine: str, file: Path, work: Path, counts: list[int], rounds: int, requests: int) -> dict[str, Any]:
    flags = ["--config", str(file), "--engine", engine, "--cache-dir", str(work / "http-cache")]
    os.environ["PYTHONPATH"] = str(ROOT / "packages")
    started = time.perf_counter()
    built = subprocess.run([sys.executable, "-m", "bei.cli", "build", *flags], capture_output=True, text=True)
    if built.returncode:
        return {"refused": built.stderr.strip().rpartition("\n")[2]}
    figures: dict[str, Any] = {"build_seconds": time.perf_counter() - started, "clients": {}}
    port = free_port()
    with ExitStack() as stack:
        with cores(server=True):
            command = [sys.executable, "-m", "bei.cli", "serve", *flags, "--port", str(port)]
            server = stack.enter_context(serving(command, port))
        figures["seconds_to_first_answer"] = server.start
        stack.enter_context(cores(server=False))
        for clients in counts:
            loads = [http1(server, clients, max(requests, 2 * clients)) for _ in range(rounds)]
            figures["clients"][str(clients)] = dataclasses.asdict(max(loads, key=lambda load: load.rate))
    return figures


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Choice([*MODELS]), required=True)
@click.option("--engines", default=",".join(ENGINES))
@click.option("--clients", default=",".join(map(str, CLIENTS)))
@click.option("--rounds", default=3, help="the best is kept")
@click.option("--requests", default=2000, help="a round")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for weights and plans")
@click.option("--out", type=click.Path(path_type=Path), default="benchmarks/gpu", help="folder of the figures")
def main(model: str, engines: str, clients: str, rounds: int, requests: int, work: Path, out: Path) -> None:
    """Requests per second, latency, and the seconds to build and to start."""
    for made in (work, out):
        made.mkdir(exist_ok=True)
    path, calibration = folder(model, work), calibration_texts(work)
    result: dict[str, Any] = {"model": model, **machine(), "cores": len(os.sched_getaffinity(0)), "servers": {}}
    counts = [int(count) for count in clients.split(",")]
    for name in engines.split(","):
        engine, quantization = ENGINES[name]
        file = config(path, quantization, calibration, work)
        result["servers"][name] = figures = measure(engine, file, work, counts, rounds, requests)
        click.echo(f"{model}, {name}: {figures.get('refused') or ''}")
        for count, load in figures.get("clients", {}).items():
            times = f"{load['p50']:8.2f} ms, {load['p99']:8.2f}"
            click.echo(f"  {count:>3} clients {load['rate']:8.0f} requests/s {times}")
    (out / f"http-{model}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
