"""The recall that vectors of fewer bits cost, with all-MiniLM-L6-v2's real weights and the engine of this machine.

Files have one text a line: the first 5,000 of a file are its documents and the next 500 its queries. Recall@10 is the
share of the ten documents with the greatest cosines that are among the ten found: by the distance of bytes, L2, for
int8 and uint8, and by differing bits for binary. Ranges are those of the file's texts after these. STS-B is Spearman's
correlation of the same distances with its scores. Run: python -m benchmarks.recall news.txt docs.txt
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr

from bei.samples import stsb
from bei.serving.service import Service
from bei.settings import Settings
from bei.tasks import precision
from bei.tasks.precision import Precision

ROOT = Path(__file__).parents[1]
DOCUMENTS, QUERIES, CALIBRATING, BEST = 5000, 500, 1500, 10
REACHES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
KINDS: tuple[Precision, ...] = ("float16", "bfloat16", "binary")


def vectors(service: Service, texts: Sequence[str]) -> np.ndarray:
    """float32[N, D] of length 1."""

    async def embed() -> np.ndarray:
        parts = [(await service.model.embed(texts[i : i + 256])).rows for i in range(0, len(texts), 256)]
        return np.concatenate(parts)

    return asyncio.run(embed())


def symmetric(reach: float, width: int) -> np.ndarray:
    """The fixed ranges at another reach."""
    return precision.fixed_ranges(width) * np.float32(reach / precision.REACH)


def distances(a: np.ndarray, b: np.ndarray, kind: Precision, ranges: np.ndarray) -> np.ndarray:
    """float[A, B] between lowered vectors; of floats the cosine, negative."""
    low_a, low_b = (precision.lowered(rows, kind, ranges) for rows in (a, b))
    if kind == "binary":
        bits = [2.0 * np.unpackbits(low.view(np.uint8) ^ 128, axis=1) - 1 for low in (low_a, low_b)]
        return -bits[0] @ bits[1].T
    raised = [precision.raised(low, kind).astype(np.float32) for low in (low_a, low_b)]
    if kind == "int8":
        lengths = [(rows * rows).sum(1) for rows in raised]
        return lengths[0][:, None] + lengths[1][None] - 2 * raised[0] @ raised[1].T
    return -raised[0] @ raised[1].T


def floats(rows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """The middles of the steps that int8 stands for."""
    steps = (ranges[1] - ranges[0]) / 255
    return ranges[0] + (precision.lowered(rows, "uint8", ranges) + 0.5) * steps


def nearest(found: np.ndarray) -> np.ndarray:
    return np.argsort(found, axis=1, kind="stable")[:, :BEST]


def recall(true: np.ndarray, found: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / BEST for a, b in zip(true.tolist(), nearest(found).tolist(), strict=True)])
    )


def of_texts(service: Service, texts: Sequence[str]) -> dict[str, float]:
    rows = vectors(service, texts)
    documents, queries, rest = np.split(rows[: DOCUMENTS + QUERIES + CALIBRATING], [DOCUMENTS, DOCUMENTS + QUERIES])
    width = rows.shape[1]
    true = nearest(-queries @ documents.T)
    measured = np.stack([rest.min(0), rest.max(0)])
    made = {kind: recall(true, distances(queries, documents, kind, measured)) for kind in KINDS}
    made["int8, measured"] = recall(true, distances(queries, documents, "int8", measured))
    made["int8, measured, as floats"] = recall(true, -floats(queries, measured) @ floats(documents, measured).T)
    for reach in REACHES:
        made[f"int8, {reach}/√D"] = recall(true, distances(queries, documents, "int8", symmetric(reach, width)))
    return made


def of_stsb(service: Service) -> dict[str, float]:
    pairs = stsb.pairs()
    first, second = vectors(service, pairs.first), vectors(service, pairs.second)
    width = first.shape[1]
    measured = np.stack([np.minimum(first.min(0), second.min(0)), np.maximum(first.max(0), second.max(0))])

    def correlation(kind: Precision, ranges: np.ndarray) -> float:
        found = [distances(a[None], b[None], kind, ranges)[0, 0] for a, b in zip(first, second, strict=True)]
        return -float(spearmanr(found, pairs.scores).statistic)

    made = {kind: correlation(kind, measured) for kind in ("float32", *KINDS)}
    made["int8, measured"] = correlation("int8", measured)
    return made | {f"int8, {reach}/√D": correlation("int8", symmetric(reach, width)) for reach in REACHES}


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def main(files: Iterable[Path]) -> None:
    service = Service(Settings.from_file(ROOT / "config.yaml", environ={}))
    service.load()
    found = {"STS-B": of_stsb(service)}
    for file in files:
        found[file.stem] = of_texts(service, file.read_text(encoding="utf-8").splitlines())
    service.close()
    click.echo(
        json.dumps({name: {kind: round(of, 4) for kind, of in rows.items()} for name, rows in found.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
