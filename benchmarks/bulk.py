"""`bei embed`, killed at random moments, against an uninterrupted run; and one Ray worker against two.

It embeds short texts of STS-B with the native engine. Run: python -m benchmarks.bulk kills (or ray)
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bei.samples.stsb import sentences
from benchmarks.cpu import processor

RESULTS = Path(__file__).parent / "results"


def texts(file: Path, rows: int) -> Path:
    """`rows` sentences with their numbers, the same on every run."""
    pool, rng = sentences(), np.random.default_rng(7)
    drawn = [pool[i] for i in rng.integers(len(pool), size=rows)]
    pq.write_table(pa.table({"id": range(rows), "text": drawn}), file)
    return file


def start(source: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bei.cli", "embed", str(source), str(output), "--log-level", "warning", *flags]
    return subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def timed(source: Path, output: Path, *flags: str) -> float:
    """Seconds from start to exit."""
    started = time.perf_counter()
    if start(source, output, *flags).wait() != 0:
        raise click.ClickException(f"no {output}")
    return time.perf_counter() - started


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Figures of bulk embedding, written to benchmarks/results/."""


_ROWS = click.option("--rows", default=200_000)
_PRECISION = click.option("--precision", default="int8")
_WORK = click.option("--work", type=click.Path(path_type=Path), default=".benchmarks/bulk")


@main.command()
@_ROWS
@_PRECISION
@_WORK
@click.option("--kills", default=5)
@click.option("--seed", default=0)
def kills(rows: int, precision: str, work: Path, kills: int, seed: int) -> None:
    """Sends SIGKILL at random moments, and runs the same command again until it ends."""
    source, flags = fresh(work, rows), ("--precision", precision)
    whole, broken = work / "whole.parquet", work / "broken.parquet"
    seconds = timed(source, whole, *flags)
    moments, chance = [], random.Random(seed)
    for _ in range(kills):
        process = start(source, broken, *flags)
        moments.append(chance.uniform(0.5, seconds / (kills + 1)))
        time.sleep(moments[-1])
        if process.poll() is not None:
            raise click.ClickException("it ended before it was killed")
        process.kill()
        process.wait()
    last = timed(source, broken, *flags)
    found = {
        "processor": processor(),
        "rows": rows,
        "precision": precision,
        "unbroken_seconds": round(seconds, 1),
        "killed_after_seconds": [round(moment, 1) for moment in moments],
        "killed_seconds": round(sum(moments) + last, 1),
        "same_bytes": whole.read_bytes() == broken.read_bytes(),
        "same_table": pq.read_table(whole).equals(pq.read_table(broken)),
    }
    report("bulk-kills.json", found)


@main.command()
@click.option("--rows", default=60_000)
@_PRECISION
@_WORK
@click.option("--repeats", default=3)
def ray(rows: int, precision: str, work: Path, repeats: int) -> None:
    """One worker of one thread against two, interleaved; texts per second from the first loaded model to the end."""
    source = fresh(work, rows)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for workers in rates:
            output = work / f"{repeat}-{workers}"
            flags = f"--precision {precision} --ray local --threads 1 --workers {workers} --part-rows 1000"
            timed(source, output, *flags.split())
            done = max(part.stat().st_mtime for part in output.glob("part-*.parquet"))
            rates[workers].append(rows / (done - (output / "_precision").stat().st_mtime))
    found = {
        "processor": processor(),
        "load_average": round(os.getloadavg()[1], 1),
        "rows": rows,
        "precision": precision,
        "texts_a_second": {workers: [round(rate) for rate in each] for workers, each in rates.items()},
        "ratio": round(float(np.median(np.divide(rates[2], rates[1]))), 2),
    }
    report("bulk-ray.json", found)


def fresh(work: Path, rows: int) -> Path:
    """A folder that contains only the texts."""
    work.mkdir(parents=True, exist_ok=False)
    return texts(work / "texts.parquet", rows)


def report(name: str, found: dict) -> None:
    (RESULTS / name).write_text(json.dumps(found, indent=2) + "\n")
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
