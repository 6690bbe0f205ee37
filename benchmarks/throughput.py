"""Ours against sentence-transformers and infinity-emb: one process each, interleaved, ratios pair by pair.

Every repetition runs every engine once on the same texts, so that the machine's moods fall on all alike; a ratio is the
median over repetitions of (their seconds / ours). Tokens are real tokens (ours count none for padding).
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

from benchmarks.texts import text_sets

HERE = Path(__file__).parent
BASELINE = "sentence-transformers fp32"


class Worker:
    """One engine behind a pipe."""

    def __init__(self, python: str, name: str, folder: Path, threads: int):
        quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        threading = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true"}
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), name, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **quiet, **threading},
        )  # fmt: skip
        self.load = self._read(name)["load"]

    def embed(self, texts: list[str], save: Path | None = None) -> Mapping[str, float]:
        self._process.stdin.write(json.dumps({"texts": texts, "save": save and str(save)}) + "\n")
        self._process.stdin.flush()
        return self._read("a worker")

    def _read(self, name: str) -> Mapping[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{name} died; run benchmarks/worker.py by hand to see why")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()  # infinity's threads do not end by themselves
        self._process.wait()


def measure(workers: Mapping[str, Worker], texts: list[str], repeats: int) -> dict[str, Any]:
    """name → medians of cpu and wall seconds, ratios to the baseline, and the cosine to its vectors."""
    seconds = {name: {"cpu": [], "wall": []} for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            took = worker.embed(texts)
            for kind in ("cpu", "wall"):
                seconds[name][kind].append(took[kind])
    with tempfile.TemporaryDirectory() as folder:
        vectors = {}
        for i, (name, worker) in enumerate(workers.items()):
            file = Path(folder) / f"{i}.npy"
            rss = worker.embed(texts, file)["rss"]
            seconds[name]["rss"] = rss
            vectors[name] = np.load(file)
    baseline = seconds[BASELINE]
    return {
        name: {
            **{kind: float(np.median(took[kind])) for kind in ("cpu", "wall")},
            **{f"{kind}_ratio": float(np.median(np.divide(baseline[kind], took[kind]))) for kind in ("cpu", "wall")},
            "cosine": float((vectors[name] * vectors[BASELINE]).sum(1).min()),
            "rss_mb": took["rss"],
        }
        for name, took in seconds.items()
    }


def show(title: str, tokens: int, results: Mapping[str, Mapping[str, float]]) -> None:
    click.echo(f"\n{title}")
    click.echo(f"  {'engine':28} {'tok/cpu-s':>10} {'ratio':>6} {'tok/s':>8} {'ratio':>6} {'min cos':>9} {'RSS MB':>7}")
    for name, r in results.items():
        click.echo(f"  {name:28} {tokens / r['cpu']:10.0f} {r['cpu_ratio']:5.2f}x {tokens / r['wall']:8.0f} "
                   f"{r['wall_ratio']:5.2f}x {r['cosine']:9.6f} {r['rss_mb']:7.0f}")  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="model folder (default: all-MiniLM-L6-v2)")
@click.option("--threads", default=2)
@click.option("--repeats", default=5)
@click.option("--sets", default="short,passage,long,mixed")
@click.option(
    "--peers-python", default=".venv-peers/bin/python", help="a Python with infinity-emb; skipped where absent"
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(model: Path | None, threads: int, repeats: int, sets: str, peers_python: str, json_file: Path | None) -> None:
    """Throughput of whole engines (text in, unit vectors out), per CPU second and by the clock."""
    folder = model or default_model()
    pythons = {name: sys.executable for name in ("ours bf16", "ours fp32", BASELINE, "sentence-transformers bf16")}
    if Path(peers_python).exists():
        pythons["infinity fp32"] = peers_python
    workers = {name: Worker(python, name, folder, threads) for name, python in pythons.items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.enable_truncation(limit)
    figures = {
        "processor": processor(),
        "threads": threads,
        "repeats": repeats,
        "sets": {},
    }
    for name in sets.split(","):
        texts = text_sets()[name]
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        results = measure(workers, texts, repeats)
        show(f"{name}: {len(texts)} texts, {tokens} tokens, {threads} threads", tokens, results)
        figures["sets"][name] = {"texts": len(texts), "tokens": tokens, "engines": results}
    figures["load_seconds"] = {name: worker.load for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


def processor() -> str:
    """The kernel's name for it, where there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    features = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return name + "".join(f", {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in features)


def default_model() -> Path:
    from bei.checkpoint.sources import fetch
    from bei.settings import Settings

    return fetch(Settings.from_file(HERE.parent / "config.yaml")).folder


if __name__ == "__main__":
    main()
