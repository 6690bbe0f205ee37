"""The native engine against other embedding engines on a CPU: one process each, interleaved, ratios pair by pair.

Every repetition runs every engine once on the same texts, so that changes of the machine's speed affect all alike. A
ratio is the median over repetitions of (the baseline's seconds / the engine's). Only real tokens count, not padding.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

from bei.architectures.shapes import products_per_token
from bei.architectures.spec import EncoderSpec, Layer
from bei.checkpoint.load import read
from bei.checkpoint.sources import fetch
from bei.engines.native.levels import level
from bei.samples.mixes import text_sets
from bei.settings import Settings
from benchmarks.peak import Peak

HERE = Path(__file__).parent
BASELINE = "sentence-transformers fp32"
WITHOUT_TILES = ("ours bf16 without tiles", "ours int8 without tiles") if level().name == "amx" else ()
OURS = (
    *("ours bf16", "ours int8", "ours int4", "ours fp32", *WITHOUT_TILES, "ours torch bf16", "ours torch fp32"),
    *(BASELINE, "sentence-transformers bf16"),
)
LLAMA_CPP = ("llama.cpp F16", "llama.cpp Q8_0")
PEERS = (
    *("infinity torch fp32", "infinity optimum int8", "onnxruntime int8", "fastembed fp32", "fastembed int8"),
    *("OpenVINO bf16", "OpenVINO int8", "OpenVINO int8 + bf16", *LLAMA_CPP),
)
PEERS_OF = {"minilm": PEERS, "bge-large": PEERS, "smollm2": LLAMA_CPP}
"""The peers that have a model: export.py is for BERT's, and llama.cpp's converter wants a tokenizer that it knows."""
SHAPES = {
    "bge-large": (
        *("BertConfig", "mean"),
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "qwen3-0.6b": (
        *("Qwen3Config", "lasttoken"),
        {
            **{"vocab_size": 151_669, "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
            **{"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000}, "dtype": "bfloat16"},
        },
    ),
    "bge-m3": (
        *("XLMRobertaConfig", "cls"),
        {
            **{"vocab_size": 250_002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
            **{"intermediate_size": 4096, "max_position_embeddings": 8194, "type_vocab_size": 1},
        },
    ),
    "modernbert-base": ("ModernBertConfig", "mean", {}),
}
"""Models of random weights: transformers' class, pooling, and the values that differ from the class's defaults."""
FEWER = {"short": 48, "passage": 8, "mixed": 12}  # texts of a set, for a model of many weights


class Worker:
    """One engine in a process of its own, behind a pipe."""

    def __init__(self, python: str, name: str, folder: Path, exported: Path, threads: int):
        quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        threading = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true"}
        self._process = subprocess.Popen(
            [python, "-P", str(HERE / "worker.py"), name, str(folder), str(exported), str(threads)],
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


Speeds = Mapping[str, list[float]]
"""The speeds of products by precision, as Peak measures them, one per repetition."""


class Products:
    """The products of a model for texts of these lengths."""

    def __init__(self, spec: EncoderSpec, lengths: list[int]):
        self._linear = 2 * products_per_token(spec) * sum(lengths)
        self._attention = 4 * spec.query_size * sum(seen(spec, layer, n) for layer in spec.layers for n in lengths)

    def seconds(self, precision: str, speeds: Speeds) -> np.ndarray:
        """The seconds of one thread, at each repetition's speed: the layers' products in this precision, attention's in
        bf16."""
        return (self._linear / np.array(speeds[precision]) + self._attention / np.array(speeds["bf16"])) / 1e9


def seen(spec: EncoderSpec, layer: Layer, length: int) -> int:
    """The number of pairs of a query and a key that it attends to."""
    before = [min(i, length if layer.window is None else layer.window) for i in range(length)]
    return sum(before) * (1 if spec.causal else 2) + length


def measure(
    workers: Mapping[str, Worker], texts: list[str], repeats: int, peaks: Mapping[str, Peak], products: Products
) -> tuple[dict[str, Any], Speeds]:
    """name → medians of CPU and wall seconds, ratios to the baseline, and cosines to its vectors; for ours also the
    share of the peak."""
    seconds = {name: {"cpu": [], "wall": []} for name in workers}
    speeds = {precision: [] for precision in peaks}
    for _ in range(repeats):
        for precision, peak in peaks.items():
            speeds[precision].append(peak.measure())
        for name, worker in workers.items():
            took = worker.embed(texts)
            for kind in ("cpu", "wall"):
                seconds[name][kind].append(took[kind])
    vectors = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, worker) in enumerate(workers.items()):
            file = Path(folder) / f"{i}.npy"
            seconds[name]["rss"] = worker.embed(texts, file)["rss"]
            vectors[name] = np.load(file)
    baseline = seconds[BASELINE]
    shares = {f"ours {precision}": products.seconds(precision, speeds) for precision in peaks}
    results = {
        name: {
            **{kind: float(np.median(took[kind])) for kind in ("cpu", "wall")},
            **{f"{kind}_ratio": float(np.median(np.divide(baseline[kind], took[kind]))) for kind in ("cpu", "wall")},
            **({"of_peak": float(np.median(shares[name] / took["cpu"]))} if name in shares else {}),
            "cosine_mean": float((vectors[name] * vectors[BASELINE]).sum(1).mean()),
            "cosine_min": float((vectors[name] * vectors[BASELINE]).sum(1).min()),
            "rss_mb": took["rss"],
        }
        for name, took in seconds.items()
    }
    return results, speeds


def show(title: str, tokens: int, results: Mapping[str, Mapping[str, float]], speeds: Speeds) -> None:
    of_products = ", ".join(f"{np.median(of):.0f} in {precision}" for precision, of in speeds.items())
    click.echo(f"\n{title}; products' GFLOP/s: {of_products}")
    heads = f"{'tok/cpu-s':>10} {'ratio':>7} {'tok/s':>8} {'ratio':>7} {'of peak':>7} {'cosine mean, min':>19} RSS MB"
    click.echo(f"  {'engine':28} {heads}")
    for name, r in results.items():
        of_peak = f"{r['of_peak']:7.0%}" if "of_peak" in r else " " * 7
        click.echo(
            f"  {name:28} {tokens / r['cpu']:10.0f} {r['cpu_ratio']:6.2f}x {tokens / r['wall']:8.0f} "
            f"{r['wall_ratio']:6.2f}x {of_peak} {r['cosine_mean']:9.6f} {r['cosine_min']:9.6f} {r['rss_mb']:7.0f}"
        )


def plot(figures: Mapping[str, Any], file: Path) -> None:
    """Plots tokens per CPU second of every engine, set by set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = figures["sets"]
    names = list(next(iter(sets.values()))["engines"])
    figure, axes = pyplot.subplots(1, len(sets), figsize=(4 * len(sets), 0.35 * len(names) + 1.2), sharey=True)
    for axis, (name, of) in zip(np.atleast_1d(axes), sets.items(), strict=True):
        speeds = [of["tokens"] / of["engines"][engine]["cpu"] / 1000 for engine in names]
        axis.barh(names, speeds, color=["#d9480f" if engine.startswith("ours") else "#adb5bd" for engine in names])
        axis.set_title(f"{name}: {of['texts']} texts, {of['tokens']} tokens")
        axis.set_xlabel("thousand tokens per CPU second")
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.suptitle(f"{figures['model']}, {figures['threads']} thread(s), {figures['processor']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def edit(file: Path, **fields: int | str) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def minilm(folder: Path, model: str = "minilm") -> Path:
    """The default model, changed to read all of its 512 positions, so that no text is cut."""
    source = fetch(Settings.from_file(HERE.parent / "config.yaml")).folder
    if not folder.exists():
        shutil.copytree(source, folder)
        edit(folder / "sentence_bert_config.json", max_seq_length=512)
    return folder


def smollm2(folder: Path, model: str) -> Path:
    """The language model that `make models` makes, with the modules of an embedder: the last token's state, to length
    one. Its tokenizer has the name that older versions of transformers know."""
    if not folder.exists():
        modules = minilm(folder.with_name("minilm"))
        shutil.copytree(HERE.parent / ".models" / model, folder)
        for name in ("modules.json", "sentence_bert_config.json"):
            shutil.copy(modules / name, folder)
        edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", model_max_length=512)
        pool(folder, "lasttoken", 576)
    return folder


TRAINED = {"minilm": minilm, "smollm2": smollm2}


def random_weights(folder: Path, model: str) -> Path:
    """A model of SHAPES with the default model's tokenizer."""
    import torch
    import transformers

    if not folder.exists():
        name, pooling, sizes = SHAPES[model]
        minilm(folder)
        torch.manual_seed(0)
        config = getattr(transformers, name)(**sizes)
        transformers.AutoModel.from_config(config, dtype=config.dtype or torch.float32).save_pretrained(folder)
        pool(folder, pooling, config.hidden_size)
    return folder


def pool(folder: Path, mode: str, size: int) -> None:
    pooled = {"pooling_mode": mode, "embedding_dimension": size}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled))


def export(python: Path, folder: Path, exported: Path, peers: set[str]) -> None:
    """Makes what these peers read, where it is missing: by export.py, and by llama.cpp's own converter."""
    exported.mkdir(exist_ok=True)
    if peers - {*LLAMA_CPP, "infinity torch fp32"} and not (exported / "openvino-int8.xml").exists():
        subprocess.run([python, "-P", HERE / "export.py", folder, exported], check=True, stdout=sys.stderr)
    converter = python.parents[1] / "llama.cpp" / "convert_hf_to_gguf.py"
    for name in peers & set(LLAMA_CPP):
        kind = name.split()[1].lower()
        if not (exported / f"{kind}.gguf").exists():
            options = ["--outtype", kind, "--outfile", exported / f"{kind}.gguf"]
            subprocess.run([python, converter, folder, *options], check=True, stdout=sys.stderr)


@click.command(context_settings={"show_default": True})
@click.option(
    "--model", type=click.Choice([*TRAINED, *SHAPES]), default="minilm", help="the last ones: shapes, random weights"
)
@click.option("--threads", default=1)
@click.option("--repeats", default=5)
@click.option("--sets", default="short,passage,long,mixed")
@click.option("--engines", default=",".join((*OURS, *PEERS)), help="the baseline is always run")
@click.option("--peers-python", default=".venv-peers/bin/python", help="a Python with the peers; skipped where absent")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures, and a plot beside them")
@click.option(
    "--work", type=click.Path(path_type=Path, resolve_path=True), default=".benchmarks", help="for exported models"
)
def main(
    model: str,
    threads: int,
    repeats: int,
    sets: str,
    engines: str,
    peers_python: str,
    json_file: Path | None,
    work: Path,
) -> None:
    """Whole engines, text in, unit vectors out: tokens per CPU second and per second, share of the peak, and
    exactness."""
    work.mkdir(exist_ok=True)
    folder = TRAINED.get(model, random_weights)(work / model, model)
    exported, wanted = work / f"{model}-exported", {BASELINE, *engines.split(",")}
    pythons = {name: sys.executable for name in OURS if name in wanted}
    if Path(peers_python).exists():
        peers = {name: peers_python for name in PEERS_OF.get(model, ()) if name in wanted}
        export(Path(peers_python), folder, exported, set(peers))
        pythons |= peers
    workers = {name: Worker(python, name, folder, exported, threads) for name, python in pythons.items()}
    peaks = {precision: Peak(precision, work) for precision in ("bf16", "int8")}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"])
    spec = read(folder, model).spec
    figures = {"processor": processor(), "model": model, "threads": threads, "repeats": repeats, "sets": {}}
    for name in sets.split(","):
        texts = text_sets()[name][: None if model == "minilm" else FEWER.get(name)]
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        results, speeds = measure(workers, texts, repeats, peaks, Products(spec, lengths))
        show(f"{name}: {len(texts)} texts, {sum(lengths)} tokens, {threads} threads", sum(lengths), results, speeds)
        figures["sets"][name] = {
            **{"texts": len(texts), "tokens": sum(lengths), "engines": results},
            "peak_gflops": {precision: float(np.median(of)) for precision, of in speeds.items()},
        }
    figures["load_seconds"] = {name: worker.load for name, worker in workers.items()}
    click.echo(f"\nseconds to load: {figures['load_seconds']}")
    for worker in workers.values():
        worker.close()
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
        plot(figures, json_file.with_suffix(".png"))


def processor() -> str:
    """The kernel's name for the processor, where it gives one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    features = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return name + "".join(f", {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in features)


if __name__ == "__main__":
    main()
