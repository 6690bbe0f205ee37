"""One engine in one process: reads {"texts": [...], "save": path} lines, answers {"cpu", "wall" (seconds), "rss" (MB)}.

python benchmarks/worker.py ENGINE MODEL_FOLDER EXPORTED_FOLDER THREADS     (ENGINE: a name of ENGINES below)
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Embed = Callable[[list[str]], np.ndarray]
"""Texts → unit vectors float32[N, D]."""
Load = Callable[[Path, Path, int], Embed]


def ours(engine: str, precision: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Embed:
        from bei.serving.service import Service
        from bei.settings import Settings

        repository = {"source": "LOCAL", "repo": str(folder)}
        build = {"base_model": "encoder_bert", "checkpoint_repository": repository, "max_num_tokens": 16384}
        service = Service(
            Settings.load({"trt_llm": {"build": build}}, engine=engine, precision=precision, threads=threads)
        )
        service.load()
        loop = asyncio.new_event_loop()
        return lambda texts: loop.run_until_complete(service.model.embed(texts)).rows

    return load


def without_tiles(precision: str) -> Load:
    """On a processor with AMX, the level below it."""

    def load(folder: Path, exported: Path, threads: int) -> Embed:
        from bei.engines.native import tiles

        tiles.usable = lambda flags: flags - set(tiles.FEATURES)
        return ours("native", precision)(folder, exported, threads)

    return load


def sentence_transformers(dtype: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Embed:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": getattr(torch, dtype)})
        return lambda texts: model.encode(texts, batch_size=32, normalize_embeddings=True, convert_to_numpy=True)

    return load


def infinity(engine: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Embed:
        import torch
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        torch.set_num_threads(threads)
        model = folder if engine == "torch" else exported / "infinity"
        arguments = EngineArgs(
            model_name_or_path=str(model), engine=engine, device="cpu", model_warmup=False, bettertransformer=False,
            pooling_method="mean",  # its optimum engine ignores 1_Pooling, and pools the first token
        )  # fmt: skip
        running, loop = AsyncEmbeddingEngine.from_args(arguments), asyncio.new_event_loop()
        loop.run_until_complete(running.astart())
        return lambda texts: np.stack(loop.run_until_complete(running.embed(texts))[0])

    return load


def onnxruntime_int8(folder: Path, exported: Path, threads: int) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(exported / "int8.onnx"), options, ["CPUExecutionProvider"])
    return padded(folder, lambda inputs: session.run(None, inputs)[0])


def openvino(file: str, hint: str) -> Load:
    def load(folder: Path, exported: Path, threads: int) -> Embed:
        import openvino

        config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(exported / file, "CPU", config)
        return padded(folder, lambda inputs: model(inputs)[0])

    return load


def fastembed(file: str) -> Load:
    """One text at a time, the fastest of its batches on a thread: it does not sort texts, so others are padded."""

    def load(folder: Path, exported: Path, threads: int) -> Embed:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        TextEmbedding.add_custom_model(
            "local", PoolingType.MEAN, normalization=True, sources=ModelSource(hf="local"), dim=0, model_file=file
        )
        model = TextEmbedding("local", specific_model_path=str(exported / "fastembed"), threads=threads)
        return lambda texts: np.stack(list(model.embed(texts, batch_size=1)))

    return load


def llama_cpp(file: str) -> Load:
    """Batches of 512 tokens, which hold the longest text, were faster than larger ones on passages."""

    def load(folder: Path, exported: Path, threads: int) -> Embed:
        from llama_cpp import LLAMA_POOLING_TYPE_LAST, LLAMA_POOLING_TYPE_MEAN, Llama

        last = json.loads((folder / "1_Pooling" / "config.json").read_text()).get("pooling_mode") == "lasttoken"
        model = Llama(
            str(exported / file), embedding=True, flash_attn=True, verbose=False,
            pooling_type=LLAMA_POOLING_TYPE_LAST if last else LLAMA_POOLING_TYPE_MEAN,
            n_threads=threads, n_threads_batch=threads, **dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), 512),
        )  # fmt: skip
        return lambda texts: np.array(model.embed(texts, normalize=True))

    return load


def padded(folder: Path, run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Embed:
    """The batches of a careful user of a padding engine: sorted, at most 2,048 tokens per batch, an eighth of them
    padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"])

    def embed(texts: list[str]) -> np.ndarray:
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        rows: list[np.ndarray | None] = [None] * len(texts)
        for batch in by_token_budget(encoded):
            length = max(len(encoded[i]) for i in batch)
            ids, mask = np.zeros((2, len(batch), length), np.int64)
            for row, i in enumerate(batch):
                ids[row, : len(encoded[i])], mask[row, : len(encoded[i])] = encoded[i], 1
            states = run({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            for i, row in zip(batch, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), strict=True):
                rows[i] = row
        return np.stack(rows)

    return embed


def by_token_budget(encoded: list[list[int]]) -> Iterator[list[int]]:
    batch, tokens = [], 0
    for i in sorted(range(len(encoded)), key=lambda i: -len(encoded[i])):
        longest = len(encoded[batch[0]]) if batch else 0
        size = longest * (len(batch) + 1)
        if batch and (size > 2048 or tokens + len(encoded[i]) < size / 1.125):
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += len(encoded[i])
    yield batch


ENGINES: dict[str, Load] = {
    "ours bf16": ours("native", "bf16"),
    "ours int8": ours("native", "int8"),
    "ours int4": ours("native", "int4"),
    "ours fp32": ours("native", "fp32"),
    "ours bf16 without tiles": without_tiles("bf16"),
    "ours int8 without tiles": without_tiles("int8"),
    "ours torch bf16": ours("torch", "bf16"),
    "ours torch fp32": ours("torch", "fp32"),
    "sentence-transformers fp32": sentence_transformers("float32"),
    "sentence-transformers bf16": sentence_transformers("bfloat16"),
    "infinity torch fp32": infinity("torch"),
    "infinity optimum int8": infinity("optimum"),
    "onnxruntime int8": onnxruntime_int8,
    "fastembed fp32": fastembed("onnx/model.onnx"),
    "fastembed int8": fastembed("onnx/model_quantized.onnx"),
    "llama.cpp F16": llama_cpp("f16.gguf"),
    "llama.cpp Q8_0": llama_cpp("q8_0.gguf"),
    "OpenVINO bf16": openvino("openvino.xml", "bf16"),
    "OpenVINO int8": openvino("openvino-int8.xml", "f32"),
    "OpenVINO int8 + bf16": openvino("openvino-int8.xml", "bf16"),
}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print; the pipe is for answers
    name, folder, exported, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    started = time.perf_counter()
    embed = ENGINES[name](folder, exported, threads)
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


if __name__ == "__main__":
    main()
