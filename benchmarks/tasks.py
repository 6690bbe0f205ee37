"""The cost of each task per token, relative to plain embedding on the same encoder: bytes in, bytes out, through
bei.api.answer.

MiniLM's own weights get a new head of each kind, for texts of up to 512 tokens, so that none is cut. The tagger's bias
makes most tokens `O`, as in real texts. Every repetition runs every task once on the same texts. A ratio is the median
over repetitions of (the embedding's seconds per token / the task's).
"""

import asyncio
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import transformers

from bei import api
from bei.checkpoint import wheels
from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.samples.mixes import text_sets
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
HEADS = {
    "embedding": (transformers.AutoModel, 2),
    "rerank": (transformers.AutoModelForSequenceClassification, 1),
    "predict": (transformers.AutoModelForSequenceClassification, 5),
    "entities": (transformers.AutoModelForTokenClassification, 9),
}


def body(task: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
    """The request of a task for `texts`."""
    match task:
        case "rerank":
            return "/rerank", {"query": texts[0][:60], "texts": texts}
        case "predict":
            return "/predict", {"inputs": [[text] for text in texts]}
        case "entities":
            return "/predict_tokens", {"inputs": texts, "aggregation_strategy": "simple"}
        case _:
            return "/v1/embeddings", {"input": texts, "encoding_format": "base64"}


def start(folder: Path, precision: str) -> Service:
    config = {
        "trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": {"source": "LOCAL", "repo": "m"}}}
    }
    service = Service(Settings.load(config, environ={}))
    checkpoint = read(folder, "m")
    service.start(checkpoint, TorchEngine(checkpoint, EngineOptions(precision=precision)))
    return service


def services(folder: Path, precision: str) -> dict[str, Service]:
    """MiniLM as it is, and with each head."""
    source = wheels.find(MODEL)
    for task, (kind, labels) in HEADS.items():
        names = {i: f"I-{i}" if i else "O" for i in range(labels)}
        model = kind.from_pretrained(source, id2label=names, label2id={name: i for i, name in names.items()})
        if task == "entities":
            model.classifier.bias.data[0] = 0.5
        model.save_pretrained(folder / task)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, folder / task)
    for name in ("modules.json", "1_Pooling"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, folder / "embedding" / name)
    return {task: start(folder / task, precision) for task in HEADS}


def run(service: Service, task: str, texts: list[str]) -> tuple[float, float, int]:
    """CPU and wall seconds, and tokens."""
    path, value = body(task, texts)
    call = api.Call("POST", path, json.dumps(value).encode())
    cpu, wall = time.process_time(), time.perf_counter()
    reply = asyncio.run(api.answer(Registry(service), call))
    assert reply.status == 200, reply.body
    return time.process_time() - cpu, time.perf_counter() - wall, int(reply.headers["x-compute-tokens"])


@click.command()
@click.option("--precision", default="bf16", show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--scale", default=4, show_default=True, help="Multiple of the texts of bei.samples.mixes.")
def main(precision: str, repeats: int, scale: int) -> None:
    """Tokens per second of each task, and the ratio to embedding."""
    logging.disable()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        by_task = services(Path(folder), precision)
        for name, texts in text_sets(scale).items():
            rates: dict[str, list[np.ndarray]] = {task: [] for task in by_task}
            for repeat in range(repeats + 1):
                for task, service in by_task.items():
                    cpu, wall, tokens = run(service, task, texts)
                    if repeat:  # the first one warms up
                        rates[task].append(np.array([tokens / cpu, tokens / wall]))
            for task, found in rates.items():
                ratio = np.median(np.array(found) / np.array(rates["embedding"]), axis=0)
                cpu, wall = np.median(found, axis=0)
                both = f"{wall / 1000:6.1f}k {ratio[1]:5.2f}x, per CPU second {cpu / 1000:6.1f}k {ratio[0]:5.2f}x"
                click.echo(f"{name:8} {task:10} tokens per second {both}")
        for service in by_task.values():
            service.close()


if __name__ == "__main__":
    main()
