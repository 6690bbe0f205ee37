"""The test part of STS-B: pairs of sentences, and how alike people found them (Cer et al. 2017, SemEval task 1)."""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("stsb_test.tsv.gz")


@dataclass(frozen=True)
class Pairs:
    """`scores` are from 0 (unlike) to 5 (alike), one for each pair of `first` and `second`."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


@cache
def pairs() -> Pairs:
    """All 1,379 pairs, in the file's order."""
    with gzip.open(_FILE, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    return Pairs(*(tuple(column) for column in zip(*((row[1], row[2], float(row[0])) for row in rows), strict=True)))


def sentences() -> list[str]:
    """Both sentences of each pair, one pair behind the other."""
    found = pairs()
    return [sentence for pair in zip(found.first, found.second, strict=True) for sentence in pair]
