"""One engine in one process: reads {"texts": [...], "save": path} lines, answers {"cpu", "wall"} in seconds.

python benchmarks/worker.py ENGINE MODEL_FOLDER THREADS     (ENGINE: a name of ENGINES below)
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

Embed = Callable[[list[str]], np.ndarray]
"""Texts → unit vectors float32[N, D]."""


def ours(precision: str) -> Callable[[str, int], Embed]:
    def load(folder: str, threads: int) -> Embed:
        from bei.service import Service
        from bei.settings import Settings

        repository = {"source": "LOCAL", "repo": folder}
        build = {"base_model": "encoder_bert", "checkpoint_repository": repository, "max_num_tokens": 16384}
        service = Service(
            Settings.load({"trt_llm": {"build": build}}, engine="torch", precision=precision, threads=threads)
        )
        service.load()
        loop = asyncio.new_event_loop()
        return lambda texts: loop.run_until_complete(service.embed(texts)).rows

    return load


def sentence_transformers(dtype: str) -> Callable[[str, int], Embed]:
    def load(folder: str, threads: int) -> Embed:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        model = SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": getattr(torch, dtype)})
        return lambda texts: model.encode(texts, batch_size=32, normalize_embeddings=True, convert_to_numpy=True)

    return load


def infinity(folder: str, threads: int) -> Embed:
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(threads)
    arguments = EngineArgs(
        model_name_or_path=folder, engine="torch", device="cpu", model_warmup=False, bettertransformer=False
    )
    engine, loop = AsyncEmbeddingEngine.from_args(arguments), asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())
    return lambda texts: np.stack(loop.run_until_complete(engine.embed(texts))[0])


ENGINES = {
    "ours fp32": ours("fp32"),
    "ours bf16": ours("bf16"),
    "sentence-transformers fp32": sentence_transformers("float32"),
    "sentence-transformers bf16": sentence_transformers("bfloat16"),
    "infinity fp32": infinity,
}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print; the pipe is ours
    name, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    started = time.perf_counter()
    embed = ENGINES[name](folder, threads)
    embed(["warm", "up"])
    print(json.dumps({"load": time.perf_counter() - started}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        vectors = embed(order["texts"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if order["save"]:
            np.save(order["save"], vectors.astype(np.float32))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"cpu": cpu, "wall": wall, "rss": rss}), file=answers, flush=True)


main()
