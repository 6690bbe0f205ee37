"""One text at a time: milliseconds of whole forward passes by tokens, shape, precision and threads, interleaved.

Each engine is in a process of its own, and gets token ids. Peers run the shapes of BERT, which export.py knows.
`bounds` counts the meetings of threads and the bytes of matrices in a layer, and what follows for many threads. Run:
python -m benchmarks.latency measure --help
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import click
import numpy as np

HERE = Path(__file__).parent
Run = Callable[[np.ndarray], object]
"""Runs one text of token ids int32[T]."""
Load = Callable[[Path, Path, int], Run]
Took = dict[tuple[str, int], list[float]]
"""(engine, threads) → milliseconds, one a round."""
OF_BERT = ("minilm", "bge-large")
SAID = {"gain": "as fast as on one thread", "ahead": "as long as ours takes"}
LEAST_SECONDS = 0.25  # of a measurement: short passes are repeated, and their median counts


def ours(precision: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Run:
        from bei.checkpoint.load import read
        from bei.engines.base import Batch, EngineOptions
        from bei.engines.native.engine import NativeEngine

        options = EngineOptions(precision=precision, threads=threads, cache_dir=exported.parent)
        engine = NativeEngine(read(folder, folder.name), options)
        return lambda ids: engine.run(Batch.pack([ids]))

    return load


def openvino(file: str, hint: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Run:
        import openvino

        config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(exported / file, "CPU", config)

        def run(ids: np.ndarray) -> object:
            row = ids[None].astype(np.int64)
            inputs = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
            return model(inputs)[0].mean(1)

        return run

    return load


OURS = {f"ours {precision}": ours(precision) for precision in ("bf16", "int8", "int4")}
ENGINES = {
    **OURS,
    "OpenVINO bf16": openvino("openvino.xml", "bf16"),
    "OpenVINO int8": openvino("openvino-int8.xml", "f32"),
}


def serve(name: str, folder: Path, exported: Path, threads: int) -> None:
    """The process of an engine: reads numbers of tokens, and answers the median seconds of a text of so many."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print; the pipe is for answers
    run = ENGINES[name](folder, exported, threads)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        ids = np.random.default_rng(0).integers(1000, 20_000, int(line)).astype(np.int32)
        run(ids)
        took: list[float] = []
        while sum(took) < LEAST_SECONDS or len(took) < 3:
            started = time.perf_counter()
            run(ids)
            took.append(time.perf_counter() - started)
        print(np.median(took), file=answers, flush=True)


class Process:
    """An engine in a process."""

    def __init__(self, python: str, name: str, folder: Path, exported: Path, threads: int):
        self._process = subprocess.Popen(
            [python, "-P", __file__, "serve", name, str(folder), str(exported), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._name = name
        self._read()

    def measure(self, tokens: int) -> float:
        """Milliseconds of a text."""
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return 1000 * float(self._read())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self._name} died; run its process by hand to see why")
        return line


def models(names: str, work: Path) -> dict[str, Path]:
    from benchmarks.cpu import minilm, random_weights

    work.mkdir(exist_ok=True)
    return {
        name: minilm(work / name) if name == "minilm" else random_weights(work / name, name)
        for name in names.split(",")
    }


def processes(
    stack: ExitStack, engines: list[str], folder: Path, peers_python: Path, counts: list[int]
) -> dict[tuple[str, int], Process]:
    """(engine, threads) → its process."""
    exported = folder.with_name(f"{folder.name}-exported")
    pythons = {name: sys.executable for name in engines if name in OURS}
    peers = [name for name in engines if name not in OURS]
    if peers and peers_python.exists() and folder.name in OF_BERT:
        if not (exported / "openvino-int8.xml").exists():
            command = [peers_python, "-P", HERE / "export.py", folder, exported, "--openvino"]
            subprocess.run(command, check=True, stdout=sys.stderr)
        pythons |= dict.fromkeys(peers, str(peers_python))
    return {
        (name, threads): stack.enter_context(closing(Process(python, name, folder, exported, threads)))
        for name, python in pythons.items()
        for threads in counts
    }


def show(model: str, tokens: int, took: Took) -> dict[str, dict[str, float]]:
    """The median milliseconds of each engine, and the ratios of SAID, pair by pair."""
    figures = {}
    for (name, threads), ms in took.items():
        row = {"ms": float(np.median(ms))}
        mine = (f"ours {name.split()[-1]}", threads)
        if threads > 1 and (name, 1) in took:
            row["gain"] = float(np.median(np.divide(took[name, 1], ms)))
        if name not in OURS and mine in took:
            row["ahead"] = float(np.median(np.divide(ms, took[mine])))
        said = ", ".join(f"{row[key]:.2f}x {text}" for key, text in SAID.items() if key in row)
        click.echo(f"{model:12} {tokens:4} tokens  {name:14} {threads} threads {row['ms']:9.2f} ms  {said}")
        figures[f"{name}, {threads}"] = row
    return figures


@click.group()
def main() -> None:
    """Milliseconds of lone texts."""


@main.command("serve")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("exported", type=click.Path(path_type=Path))
@click.argument("threads", type=int)
def serve_engine(name: str, folder: Path, exported: Path, threads: int) -> None:
    """The process of an engine."""
    serve(name, folder, exported, threads)


@main.command(context_settings={"show_default": True})
@click.option("--model", "names", default="minilm,bge-large,qwen3-0.6b", help="minilm, or shapes of benchmarks.cpu")
@click.option("--tokens", default="6,12,24,48,96,256")
@click.option("--threads", default="1,2")
@click.option("--engines", default=",".join(ENGINES))
@click.option("--rounds", default=5)
@click.option("--peers-python", type=click.Path(path_type=Path), default=".venv-peers/bin/python")
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), default=".benchmarks")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def measure(
    names: str,
    tokens: str,
    threads: str,
    engines: str,
    rounds: int,
    peers_python: Path,
    work: Path,
    json_file: Path | None,
) -> None:
    """Every engine once a round, text by text."""
    from benchmarks.cpu import processor

    figures: dict = {"processor": processor(), "rounds": rounds, "models": {}}
    for model, folder in models(names, work).items():
        with ExitStack() as stack:
            counts = list(map(int, threads.split(",")))
            running = processes(stack, engines.split(","), folder, peers_python, counts)
            of_model = figures["models"][model] = {}
            for count in map(int, tokens.split(",")):
                took: Took = {key: [] for key in running}
                for _ in range(rounds):
                    for key, process in running.items():
                        took[key].append(process.measure(count))
                of_model[count] = show(model, count, took)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


@main.command(context_settings={"show_default": True})
@click.option("--model", "names", default="minilm,bge-large,qwen3-0.6b")
@click.option("--tokens", default="6,12,24,48,96,256")
@click.option("--threads", default="2,4,8,16")
@click.option("--second-cache", default=1 << 20, help="bytes for a processor")
@click.option("--last-cache", default=2 << 20)
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), default=".benchmarks")
def bounds(names: str, tokens: str, threads: str, second_cache: int, last_cache: int, work: Path) -> None:
    """The choice and the estimate of the engine for other machines (cpp/encoder/sharing.h): counted, not measured."""
    from bei.checkpoint.load import read
    from bei.engines.base import EngineOptions
    from bei.engines.native.encoder import machine_of
    from bei.engines.native.engine import NativeEngine
    from bei.engines.processor import Caches

    caches = Caches(0, second_cache, last_cache)
    for name, folder in models(names, work).items():
        for precision in ("bf16", "int8", "int4"):
            options = EngineOptions(precision=precision, threads=1, cache_dir=work)
            engine = NativeEngine(read(folder, name), options)
            for count in map(int, tokens.split(",")):
                said = []
                for n in map(int, threads.split(",")):
                    of = engine.sharing(count, machine_of(n, caches))
                    form = f"{of.threads} by columns" if of.by_columns else "by rows"
                    said.append(f"{n}: {form}, {of.alone / of.shared:.1f}x")
                click.echo(f"{name:12} {precision} {count:4} tokens, {of.meetings} meetings; " + "; ".join(said))


if __name__ == "__main__":
    main()
