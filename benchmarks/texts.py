"""Text sets of usual lengths, made from the STS-B sentences of the tests; the same on every run."""

import gzip
from pathlib import Path

import numpy as np

_STSB = Path(__file__).parents[1] / "tests" / "data" / "stsb_test.tsv.gz"


def sentences() -> list[str]:
    """Both sentences of every STS-B pair."""
    with gzip.open(_STSB, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    return [sentence for row in rows for sentence in row[1:3]]


def text_sets(scale: int = 1) -> dict[str, list[str]]:
    """short: about 14 tokens; passage: 130; long: 450; mixed: 60 % short, 30 % passage, 10 % long, shuffled."""
    rng, pool = np.random.default_rng(7), sentences()

    def texts(count: int, parts: int) -> list[str]:
        return [" ".join(pool[i] for i in rng.integers(len(pool), size=parts)) for _ in range(count * scale)]

    mixed = texts(48, 1) + texts(24, 9) + texts(8, 32)
    return {
        "short": texts(128, 1),
        "passage": texts(32, 9),
        "long": texts(8, 32),
        "mixed": [mixed[i] for i in rng.permutation(len(mixed))],
    }
