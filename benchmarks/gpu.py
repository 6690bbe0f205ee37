"""Our engines on a GPU against sentence-transformers on the same GPU, interleaved, one model at a time.

Every repetition runs every contender once on the same texts. A ratio is the median over repetitions of
(sentence-transformers' seconds / the contender's). "engine" takes token ids and returns rows, as the scheduler calls
it; "service" takes texts and returns unit vectors, as sentence-transformers does. Both run on the first GPU, or on a
CPU to try the program. benchmarks.gpu_http measures HTTP. Run: python -m benchmarks.gpu --model bge-large
"""

import asyncio
import json
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Batch, Calibration, Engine, EngineOptions
from bei.engines.tensorrt.engine import TensorRTEngine
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from bei.samples.stsb import sentences
from bei.serving.service import Service
from bei.settings import Settings
from bei.settings.block import QuantizationType
from benchmarks.gpu_models import LENGTHS, MODELS, TOKENS, folder, operations, texts

BASELINE = "sentence-transformers bf16"
BATCH_TOKENS, BATCH_TEXTS = 16_384, 1024
ENGINES: dict[str, tuple[type[Engine], str, QuantizationType]] = {
    "tensorrt bf16": (TensorRTEngine, "bf16", QuantizationType.NO_QUANT),
    "torch bf16": (TorchEngine, "bf16", QuantizationType.NO_QUANT),
    "tensorrt fp8": (TensorRTEngine, "auto", QuantizationType.FP8),
    "torch fp8": (TorchEngine, "auto", QuantizationType.FP8),
}
Run = Callable[[], Any]


def calibration_texts(work: Path) -> Path:
    """512 sentences, one per line; later ones are for comparisons."""
    file = work / "calibration.txt"
    file.write_text("\n".join(sentences()[:512]))
    return file


def options(precision: str, quantization: QuantizationType, work: Path) -> EngineOptions:
    return EngineOptions(
        precision,
        quantization,
        Calibration(str(calibration_texts(work)), 512, 512),
        cache_dir=work / "cache",
        max_num_tokens=BATCH_TOKENS,
        max_batch_size=BATCH_TEXTS,
    )


def load(checkpoint: Checkpoint, work: Path) -> tuple[dict[str, Engine], dict[str, Any]]:
    """The engines that run here, with the seconds of the first and the second load, or the reason why one does not
    run."""
    found, figures = {}, {}
    for name, (kind, precision, quantization) in ENGINES.items():
        try:
            seconds = []
            # The second one maps the plan that the first one has built.
            for _ in range(2 if kind is TensorRTEngine else 1):
                found.pop(name, None)
                started = time.perf_counter()
                found[name] = kind(checkpoint, options(precision, quantization, work))
                seconds.append(time.perf_counter() - started)
            if quantization != "no_quant" and found[name].facts.quantization != quantization:
                raise SetupError(f"{quantization} is not available here")
            figures[name] = {"load_seconds": seconds, "device": found[name].facts.device}
        except SetupError as exc:
            found.pop(name, None)
            figures[name] = {"refused": str(exc)}
    return found, figures


def batches(ids: list[list[int]]) -> list[Batch]:
    """Batches as the queue cuts them: by the budgets of tokens and of texts."""
    cut: list[list[list[int]]] = [[]]
    for text in ids:
        if len(cut[-1]) == BATCH_TEXTS or sum(map(len, cut[-1])) + len(text) > BATCH_TOKENS:
            cut.append([])
        cut[-1].append(text)
    return [Batch.pack(texts) for texts in cut]


def run_engine(engine: Engine, cut: list[Batch], pool: ThreadPoolExecutor) -> None:
    """Runs batches with one more thread than the engine has streams, as the scheduler does."""
    list(pool.map(engine.run, cut))


def service_of(checkpoint: Checkpoint, engine: Engine) -> Service:
    repository = {"source": "LOCAL", "repo": "m"}
    build = {"base_model": "encoder_bert", "checkpoint_repository": repository}
    build |= {"max_num_tokens": BATCH_TOKENS, "max_batch_size": BATCH_TEXTS}
    service = Service(Settings.load({"trt_llm": {"build": build}}, environ={}))
    service.start(checkpoint, engine)
    return service


def sentence_transformers(path: Path) -> Callable[[list[str]], np.ndarray]:
    from sentence_transformers import SentenceTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(str(path), device=device, model_kwargs={"dtype": torch.bfloat16})

    def embed(chosen: list[str]) -> np.ndarray:
        size = max(1, BATCH_TOKENS // (max(text.count(" ") for text in chosen) + 3))
        return model.encode(chosen, batch_size=size, normalize_embeddings=True, convert_to_numpy=True)

    return embed


def peaks() -> dict[str, float]:
    """Operations per second of a large product of random numbers, the best of 20; fp8 where the GPU has it."""
    on_gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if on_gpu else (256, "cpu")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    products: dict[str, Run] = {"bf16": lambda: a @ b.T}
    if on_gpu and torch.cuda.get_device_capability() >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        rows, columns = torch.ones(size, 1, device=device), torch.ones(1, size, device=device)
        products["fp8"] = lambda: torch._scaled_mm(
            *(a8, b8, rows, columns), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return {name: 2 * size**3 / min(timed(run) for _ in range(20)) for name, run in products.items()}


def timed(run: Run) -> float:
    """Seconds, including the device's work."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def idle(run: Run) -> float | None:
    """The share of time without a running kernel, from a profile of every kernel; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [e.time_range for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((span.start, span.end) for span in kernels)
    if not spans:
        return None
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def latencies(engine: Engine, lengths: tuple[int, ...], count: int) -> dict[str, float]:
    """Milliseconds of a lone query in the engine, by its number of tokens: p50 and p99."""
    found = {}
    for length in lengths:
        batch = Batch.pack([[7] * length])
        engine.run(batch)
        took = [1000 * timed(lambda batch=batch: engine.run(batch)) for _ in range(count)]
        found |= {f"{length} p50": float(np.percentile(took, 50)), f"{length} p99": float(np.percentile(took, 99))}
    return found


def measure(contenders: Mapping[str, Run], repeats: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            took = timed(run)
            if repeat:  # the first one warms up
                seconds[name].append(took)
    baseline = seconds[f"{BASELINE}, service"]
    return {
        name: {"seconds": float(np.median(took)), "ratio": float(np.median(np.divide(baseline, took)))}
        for name, took in seconds.items()
    }


def measure_model(model: str, work: Path, repeats: int, lone: int) -> dict[str, Any]:
    path = folder(model, work)
    checkpoint = read(path, model)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    engines, figures = load(checkpoint, work)
    services = {name: service_of(checkpoint, engine) for name, engine in engines.items()}
    theirs = sentence_transformers(path)
    result: dict[str, Any] = {"model": model, **machine(), "peak": peaks(), "engines": figures, "sets": {}}
    for name, engine in engines.items():
        figures[name]["latency_ms"] = latencies(engine, (16, 128, 512), lone)
    for set_name, lengths in LENGTHS.items():
        chosen = texts(tokenizer, lengths, TOKENS.get(model, 1024))
        ids = [encoding.ids for encoding in tokenizer.encode_batch(chosen)]
        counts = [len(text) for text in ids]
        cut = batches(ids)
        contenders: dict[str, Run] = {f"{BASELINE}, service": lambda chosen=chosen: theirs(chosen)}
        pools = {name: ThreadPoolExecutor(engine.facts.streams + 1) for name, engine in engines.items()}
        for name, engine in engines.items():
            contenders[f"{name}, engine"] = lambda e=engine, c=cut, p=pools[name]: run_engine(e, c, p)
            contenders[f"{name}, service"] = lambda s=services[name], c=chosen: asyncio.run(s.model.embed(c))
        rows = measure(contenders, repeats)
        flops = operations(checkpoint.spec, counts)
        for name, row in rows.items():
            row |= {"tokens_a_second": sum(counts) / row["seconds"], "texts_a_second": len(ids) / row["seconds"]}
            row["of_peak"] = flops / row["seconds"] / result["peak"].get("fp8" if "fp8" in name else "bf16", np.inf)
            row["idle"] = idle(contenders[name])
        result["sets"][set_name] = {"texts": len(ids), "tokens": sum(counts), "operations": flops, "rows": rows}
        for pool in pools.values():
            pool.shutdown()
    for service in services.values():
        service.close()
    return result


def machine() -> dict[str, str]:
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.machine()
    return {"device": device, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def show(result: Mapping[str, Any]) -> None:
    peaks = ", ".join(f"{name} {value / 1e12:.0f} TFLOP/s" for name, value in result["peak"].items())
    click.echo(f"\n{result['model']} on {result['device']}, torch {result['torch']}; peak: {peaks}")
    for name, of in result["engines"].items():
        click.echo(f"  {name:30} {of.get('refused') or of}")
    for set_name, of in result["sets"].items():
        click.echo(f"\n  {set_name} tokens: {of['texts']} texts, {of['tokens']} tokens")
        click.echo(f"  {'':38} {'tokens/s':>10} {'texts/s':>9} {'ratio':>7} {'of peak':>7} {'idle':>6}")
        for name, row in of["rows"].items():
            rest = "" if row["idle"] is None else f"{row['idle']:6.0%}"
            click.echo(
                f"  {name:38} {row['tokens_a_second']:10.0f} {row['texts_a_second']:9.0f} {row['ratio']:6.2f}x "
                f"{row['of_peak']:7.0%} {rest}"
            )


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Choice([*MODELS]), required=True)
@click.option("--repeats", default=5)
@click.option("--lone", default=200, help="lone queries, of each length")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for weights and plans")
@click.option("--out", type=click.Path(path_type=Path), default="benchmarks/gpu", help="folder of the figures")
def main(model: str, repeats: int, lone: int, work: Path, out: Path) -> None:
    """Tokens per second, the ratio to sentence-transformers, the share of the peak, latency, and seconds to load."""
    work.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    result = measure_model(model, work, repeats, lone)
    show(result)
    (out / f"speed-{model}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
