"""Compares the engines' rows on a GPU with those on a CPU, for every architecture, precision and batch size.

It needs no network, and exits with 1 where a comparison fails. A case that an engine refuses is listed, and is no
failure. Without a GPU the torch engine is checked on the CPU, to try the program. Run: python -m benchmarks.gpu_check
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Batch, Engine
from bei.engines.compute import Compute
from bei.engines.tensorrt.engine import TensorRTEngine
from bei.engines.torch.engine import TorchEngine
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.model import Model
from bei.engines.torch.weights import Weights
from bei.errors import SetupError
from bei.samples.stsb import sentences
from bei.settings.block import QuantizationType
from benchmarks.cpu import minilm
from benchmarks.gpu import machine, options
from tests.support.tiny_models import FAMILIES, VOCAB, random_model, save

ROOT = Path(__file__).parents[1]
KINDS: dict[str, type[Engine]] = {"torch": TorchEngine, "tensorrt": TensorRTEngine}
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
"""Options of tiny models: heads of 64 numbers, as fused attention has them."""
RELATIVE, COSINE_BF16, COSINE_FP8, COSINE_FP8_RANDOM = 2e-5, 0.9995, 0.995, 0.95
"""Limits: in fp32 the largest difference divided by the largest number; otherwise cosines, the worst, and the mean for
real texts. Random weights tolerate few errors of eight bits."""


@dataclass(frozen=True)
class Check:
    """`value` is a cosine, or a relative error in fp32; None where the engine refuses, with the reason."""

    what: str
    engine: str
    precision: str
    value: float | None
    limit: float
    refused: str = ""

    @property
    def passes(self) -> bool:
        if self.value is None:
            return True
        return self.value <= self.limit if self.precision == "fp32" else self.value >= self.limit


class Checker:
    def __init__(self, engines: list[str], work: Path, longest: int, texts: int):
        """`longest`: tokens of the longest text; `texts`: texts of the largest batch."""
        self._engines, self._work, self._longest, self._texts = engines, work, longest, texts

    def run(self, families: list[str], models: Path) -> Iterator[Check]:
        with TemporaryDirectory() as folder:
            for family in families:
                path = save(Path(folder) / family, random_model(family, **SIZES))
                yield from self._family(family, read(path, family))
            yield from self._long(Path(folder) / "long")
        embedder = read(minilm(self._work / "minilm"), "minilm")
        yield from self._golden(embedder)
        yield from self._ragged(embedder)
        yield from self._real("minilm", embedder)
        if (models / "smollm2").exists():
            yield from self._real("smollm2", read(models / "smollm2", "smollm2"))

    def _family(self, family: str, checkpoint: Checkpoint) -> Iterator[Check]:
        rng = np.random.default_rng(0)
        ids = [rng.integers(5, len(VOCAB), length).tolist() for length in (1, 5, 64, 7, 5, 1, 33, 64, 2)]
        for precision in ("fp32", "bf16", "fp8"):
            kind = "tokens" if precision == "fp32" else "pooled"
            limit = {"fp32": RELATIVE, "bf16": COSINE_BF16, "fp8": COSINE_FP8_RANDOM}[precision]
            yield from self._compare(family, checkpoint, [Batch.pack(ids, row_kind=kind)], precision, limit)

    def _long(self, folder: Path) -> Iterator[Check]:
        longest = self._longest
        model = random_model("qwen3", **SIZES, num_hidden_layers=2, max_position_embeddings=longest)
        checkpoint = read(save(folder, model, pooling={"pooling_mode": "lasttoken"}), "long", max_num_tokens=longest)
        ids = np.random.default_rng(0).integers(5, len(VOCAB), longest).tolist()
        yield from self._compare(f"one text of {longest} tokens", checkpoint, [Batch.pack([ids])], "bf16", COSINE_BF16)

    def _ragged(self, checkpoint: Checkpoint) -> Iterator[Check]:
        """Batches of one text up to the largest number; a text is in several batches, with other neighbors."""
        rng, most = np.random.default_rng(0), self._texts
        pool = [rng.integers(1000, 30_000, length).tolist() for length in rng.integers(1, 64, most)]
        counts = (1, 2, 7, most // 8, most - 1, most)
        batches = [Batch.pack([pool[i] for i in rng.permutation(most)[:count]]) for count in counts]
        yield from self._compare("ragged batches of minilm", checkpoint, batches, "bf16", COSINE_BF16)

    def _real(self, name: str, checkpoint: Checkpoint) -> Iterator[Check]:
        tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(checkpoint.max_tokens)
        batch = Batch.pack([encoding.ids for encoding in tokenizer.encode_batch(sentences()[-self._texts :])])
        for precision, limit in (("bf16", COSINE_BF16), ("fp8", COSINE_FP8)):
            yield from self._compare(f"texts of {name}", checkpoint, [batch], precision, limit, np.mean)

    def _golden(self, checkpoint: Checkpoint) -> Iterator[Check]:
        golden = json.loads((ROOT / "tests" / "data" / "minilm_golden.json").read_text())["mean_pooled_unnormalized"]
        tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_file))
        tokenizer.no_padding()
        batch = Batch.pack([encoding.ids for encoding in tokenizer.encode_batch(golden["texts"])])
        for name in self._engines:
            engine, why = self._engine(name, checkpoint, "bf16")
            value = None if engine is None else float(_cosines(engine.run(batch), np.array(golden["vectors"])).min())
            yield Check("golden vectors of minilm", name, "bf16", value, COSINE_BF16, why)

    def _compare(
        self,
        what: str,
        checkpoint: Checkpoint,
        batches: list[Batch],
        precision: str,
        limit: float,
        over: Callable[[np.ndarray], float] = np.min,
    ) -> Iterator[Check]:
        expected = _on_cpu(checkpoint, batches)
        for name in self._engines:
            engine, why = self._engine(name, checkpoint, precision)
            value = None
            if engine is not None:
                found = np.concatenate([engine.run(batch) for batch in batches])
                if precision == "fp32":
                    value = float(np.abs(found - expected).max() / np.abs(expected).max())
                else:
                    value = float(over(_cosines(found, expected)))
            yield Check(what, name, precision, value, limit, why)

    def _engine(self, name: str, checkpoint: Checkpoint, precision: str) -> tuple[Engine | None, str]:
        eight_bits = precision == "fp8"
        quantization = QuantizationType.FP8 if eight_bits else QuantizationType.NO_QUANT
        try:
            engine = KINDS[name](checkpoint, options("auto" if eight_bits else precision, quantization, self._work))
        except SetupError as exc:
            return None, str(exc)
        return (engine, "") if engine.facts.computes_in == precision else (None, f"{precision} is not available here")


def _on_cpu(checkpoint: Checkpoint, batches: list[Batch]) -> np.ndarray:
    """The rows of the torch engine in float32, which the tests compare with transformers."""
    model = Model(checkpoint.spec, Weights(checkpoint, torch.device("cpu"), Compute("fp32")))
    with torch.inference_mode():
        every = [Inputs.of(batch, checkpoint.spec) for batch in batches]
        rows = [model(inputs, batch.row_kind).numpy() for inputs, batch in zip(every, batches, strict=True)]
    return np.concatenate([i.layout.unsorted(r, b.row_kind) for i, r, b in zip(every, rows, batches, strict=True)])


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@click.command(context_settings={"show_default": True})
@click.option("--engines", default=",".join(KINDS))
@click.option("--families", default=",".join(FAMILIES))
@click.option("--longest", default=32_768, help="tokens of the longest text")
@click.option("--texts", default=512, help="of the largest batch")
@click.option("--models", type=click.Path(path_type=Path), default=".models", help="where `make models` makes smollm2")
@click.option("--work", type=click.Path(path_type=Path), default=".benchmarks", help="for weights and plans")
@click.option("--out", type=click.Path(path_type=Path), default="benchmarks/gpu", help="folder of the figures")
def main(engines: str, families: str, longest: int, texts: int, models: Path, work: Path, out: Path) -> None:
    """Compares rows with those of the CPU."""
    for made in (work, out):
        made.mkdir(exist_ok=True)
    checks = []
    for check in Checker(engines.split(","), work, longest, texts).run(families.split(","), models):
        checks.append(check)
        value = f"refused: {check.refused}" if check.value is None else f"{check.value:.7f}, limit {check.limit}"
        click.echo(f"{'ok  ' if check.passes else 'OFF '} {check.what:28} {check.engine:9} {check.precision:5} {value}")
    figures = {**machine(), "checks": [asdict(check) | {"passes": check.passes} for check in checks]}
    (out / "correctness.json").write_text(json.dumps(figures, indent=1) + "\n")
    off, refused = sum(not check.passes for check in checks), sum(check.value is None for check in checks)
    click.echo(f"\n{machine()['device']}: {len(checks)} checks, {off} off, {refused} refused")
    sys.exit(bool(off))


if __name__ == "__main__":
    main()
