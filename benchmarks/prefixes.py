"""The gain of sharing a beginning: a rerank batch of a causal model, computed with and without, interleaved."""

import time
from pathlib import Path

import click
import numpy as np

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from benchmarks.cpu import random_weights


@click.command(context_settings={"show_default": True})
@click.option("--prefix", default=200, help="tokens of the common beginning")
@click.option("--documents", default=16)
@click.option("--tokens", default=60, help="further tokens of each document")
@click.option("--repeats", default=5)
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks")
def main(prefix: int, documents: int, tokens: int, repeats: int, work: Path) -> None:
    """Qwen3-0.6B's shape with random weights, bf16, one thread."""
    folder = random_weights(work / "qwen3-0.6b", "qwen3-0.6b")
    engine = NativeEngine(read(folder, "qwen3"), EngineOptions(precision="bf16", threads=1, cache_dir=work))
    rng = np.random.default_rng(0)
    first = rng.integers(1000, 30000, prefix).tolist()
    ids = [first + rng.integers(1000, 30000, tokens).tolist() for _ in range(documents)]
    batch, alone = Batch.pack(ids), [Batch.pack([one]) for one in ids]
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(repeats):
        started = time.perf_counter()
        rows = engine.run(batch)
        seconds["together"].append(time.perf_counter() - started)
        started = time.perf_counter()
        apart = np.concatenate([engine.run(one) for one in alone])
        seconds["alone"].append(time.perf_counter() - started)
    assert np.array_equal(rows, apart)
    ratio = np.median(np.divide(seconds["alone"], seconds["together"]))
    together, alone_for = (np.median(took) for took in seconds.values())
    click.echo(
        f"{documents} documents of {tokens} tokens behind {prefix}: {alone_for:.2f} s alone, {together:.2f} s together"
    )
    click.echo(f"{ratio:.2f} times as fast, and the same to the last bit")


if __name__ == "__main__":
    main()
