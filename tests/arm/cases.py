"""Models that run on ARM64, the runs that `runner.py` makes of each, and the results of transformers here."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from bei.architectures.spec import PoolingMode
from bei.checkpoint.load import read
from bei.engines import base
from tests.support.model_options import OPTIONS, families_with
from tests.support.parity import reference, sequences
from tests.support.tiny_models import ALL_EXPERTS, FAMILIES, VOCAB, random_model, save

PRECISIONS = ("fp32", "bf16", "int8", "int4")
ALONE = (0, 3, 6)
"""Sequences that also run alone: of 1, 7 and 33 tokens."""
ORDER = np.random.default_rng(1).permutation(len(sequences())).tolist()
LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
HEADS = ("SequenceClassification", "TokenClassification", "MaskedLM")
BLOCKS = {"deberta-v2": {"max_position_embeddings": 400, "conv_kernel_size": 3}, "xlnet": {}}
"""Families whose scores depend on distances; the keys meet a block of queries at a time."""


@dataclass(frozen=True)
class Run:
    """One batch. `modes` pool in place of the checkpoint's own pooling, without `prompts` tokens."""

    precision: str
    ids: list[list[int]]
    rows: str = "pooled"
    threads: int = 1
    modes: tuple[str, ...] = ()
    prompts: list[int] | None = None


@dataclass(frozen=True)
class Case:
    """`folder` has the checkpoint and `runs.json`. `expected` has float32 results of runs by their names."""

    kind: str
    folder: Path
    expected: dict[str, np.ndarray] = field(default_factory=dict)


Make = Callable[[Path], Case]


def one_family(family: str, folder: Path) -> Case:
    """Its states, and its rows in each precision: together, shuffled and alone."""
    ids, model = sequences(), random_model(family, **ALL_EXPERTS.get(family, {}))
    runs = {"states": Run("fp32", ids, "tokens")}
    for precision in PRECISIONS:
        runs[precision] = Run(precision, ids)
        runs[f"{precision} shuffled"] = Run(precision, [ids[i] for i in ORDER])
        runs |= {f"{precision} alone {i}": Run(precision, [ids[i]]) for i in ALONE}
    return _written("family", folder, model, runs, {"states": reference(model, ids)})


def others() -> Iterator[tuple[str, Make]]:
    """Options, heads, poolings and blocks: a name, and what makes the case in a folder."""
    for family in FAMILIES:
        for i, options in enumerate(OPTIONS.get(family, [])):
            if options:
                yield f"{family} option {i}", lambda folder, of=family, given=options: _option(of, given, folder)
    for head in HEADS:
        for family in families_with(head):
            yield f"{family} {head}", lambda folder, of=family, head=head: _with_head(of, head, folder)
    yield "poolings", _poolings
    for family in BLOCKS:
        yield f"{family} blocks", lambda folder, of=family: _blocks(of, folder)


def _option(family: str, options: dict[str, Any], folder: Path) -> Case:
    model, ids = random_model(family, **options), sequences()
    return _written("option", folder, model, {"states": Run("fp32", ids, "tokens")}, {"states": reference(model, ids)})


def _with_head(family: str, head: str, folder: Path) -> Case:
    """MaskedLM's is SPLADE."""
    ids = sequences()
    model = random_model(family, 0, f"For{head}", **({} if head == "MaskedLM" else {"id2label": LABELS}))
    with torch.no_grad():
        logits = [model(torch.tensor([of])).logits[0].numpy() for of in ids]
    rows = "tokens" if head == "TokenClassification" else "pooled"
    if head == "MaskedLM":
        logits = [np.log1p(np.maximum(of, 0)).max(0) for of in logits]
    expected = np.concatenate(logits) if rows == "tokens" else np.stack(logits)
    reading = {"pooling": "splade"} if head == "MaskedLM" else {}
    return _written("head", folder, model, {"rows": Run("fp32", ids, rows)}, {"rows": expected}, None, reading)


def _poolings(folder: Path) -> Case:
    """Each mode, and all of them together, with prompts that are left out."""
    ids, prompts = [[7] * n for n in (1, 4, 64, 9, 30)], [0, 2, 60, 9, 1]
    modes = [(mode,) for mode in get_args(PoolingMode)]
    runs = {"+".join(of): Run("fp32", ids, modes=of, prompts=prompts) for of in [*modes, sum(modes, ())]}
    model = random_model("bert")
    states, batch = reference(model, ids), base.Batch.pack(ids, prompt_tokens=prompts)
    pooled = {name: base.pool(states, batch, base.Pooling(run.modes, False)) for name, run in runs.items()}
    return _written("pooling", folder, model, runs, pooled)


def _blocks(family: str, folder: Path) -> Case:
    """More queries than meet the keys at a time, on three threads, and each text alone on one."""
    model, rng = random_model(family, **BLOCKS[family]), np.random.default_rng(0)
    ids = [rng.integers(5, len(VOCAB), size=n).tolist() for n in (250, 3, 121)]
    runs = {"states": Run("fp32", ids, "tokens", threads=3)}
    for precision in PRECISIONS:
        runs[precision] = Run(precision, ids, threads=3)
        runs |= {f"{precision} alone {i}": Run(precision, [of]) for i, of in enumerate(ids)}
    return _written("blocks", folder, model, runs, {"states": reference(model, ids)})


def _written(
    kind: str,
    folder: Path,
    model: torch.nn.Module,
    runs: dict[str, Run],
    expected: dict[str, np.ndarray],
    pooling: dict[str, str] | None = {"pooling_mode": "mean"},  # noqa: B006  it is not changed
    reading: dict[str, str] | None = None,
) -> Case:
    save(folder, model, pooling=pooling)
    read(folder, folder.name, **(reading or {}))
    told = {"reading": reading or {}, "runs": {name: asdict(run) for name, run in runs.items()}}
    (folder / "runs.json").write_text(json.dumps(told))
    return Case(kind, folder, expected)
