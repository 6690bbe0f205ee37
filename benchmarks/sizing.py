"""How much memory a model needs, and how many texts a second a processor embeds, by model and precision, over HTTP.

Each server gets queries (a short text a request) and documents (32 passages a request) from a few clients on the same
machine. A client that gets a 429 waits as the server says. Rates are per CPU second of the server, tokenizer and HTTP
included, so the clients do not count. Memory is the sum of the proportional set sizes of all its processes, after the
load. Weights other than MiniLM's are random, which changes neither figure. Run: python -m benchmarks.sizing MODEL...
"""

import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx
import yaml

from bei.samples.mixes import text_sets
from benchmarks import cpu
from benchmarks.http_load import ROOT, read
from benchmarks.processes import Tree, served

cpu.SHAPES["bert-base"] = ("BertConfig", "mean", {})
WORK = ROOT / ".benchmarks"
LOADS = {"queries": ("short", 1, 16), "documents": ("passage", 32, 4)}
"""Texts, how many of them a request has, and how many clients ask."""


def memory(server: Tree) -> int:
    """MB of a server's processes; memory that several share counts once."""
    sizes = (
        re.search(r"^Pss: +(\d+) kB", read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE) for pid in server.pids()
    )
    return round(sum(int(size[1]) for size in sizes if size) / 1000)


def texts_a_cpu_second(server: Tree, load: str, seconds: float) -> float:
    name, count, clients = LOADS[load]
    pool = text_sets()[name]
    bodies = [
        json.dumps({"input": pool[i : i + count], "encoding_format": "base64"}) for i in range(0, len(pool), count)
    ]
    url = f"http://127.0.0.1:{server.port}/v1/embeddings"

    def ask(seconds: float) -> int:
        answered, end = 0, time.perf_counter() + seconds
        with httpx.Client(timeout=None) as client:
            while time.perf_counter() < end:
                answer = client.post(url, content=bodies[answered // count % len(bodies)])
                if answer.status_code == 429:
                    time.sleep(int(answer.headers["retry-after"]))
                else:
                    answer.raise_for_status()
                    answered += count
        return answered

    with ThreadPoolExecutor(clients) as everyone:
        list(everyone.map(ask, [seconds / 4] * clients))
        before = server.cpu()
        answered = sum(everyone.map(ask, [seconds] * clients))
    return answered / (server.cpu() - before)


@click.command(context_settings={"show_default": True})
@click.argument("models", nargs=-1)
@click.option("--precisions", default="bf16,int8")
@click.option("--seconds", default=5.0, help="of each load")
def main(models: tuple[str, ...], precisions: str, seconds: float) -> None:
    """Prints a row of a table for each server."""
    for model, precision in itertools.product(models, precisions.split(",")):
        folder = cpu.TRAINED.get(model, cpu.random_weights)(WORK / model, model)
        config = yaml.safe_load((ROOT / "config.yaml").read_text())
        config["trt_llm"]["build"]["checkpoint_repository"] = {"source": "LOCAL", "repo": str(folder)}
        file = WORK / "sizing.yaml"
        file.write_text(yaml.safe_dump(config))
        flags = ("--precision", precision, "--threads", "1", "--engine", "native")
        with served(str(file), *flags, log=WORK / "sizing.log") as server:
            rates = [texts_a_cpu_second(server, load, seconds) for load in LOADS]
            cells = [model, precision, f"{memory(server)} MB", *(f"{rate:.1f}" for rate in rates)]
        print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201  the table


if __name__ == "__main__":
    main()
