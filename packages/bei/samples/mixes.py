"""Texts of usual lengths, made from STS-B's sentences; the same on every run."""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from bei.samples.stsb import sentences

Mix = Literal["short", "passage", "long", "mixed"]
MIXES: tuple[Mix, ...] = get_args(Mix)


def text_sets(scale: int = 1) -> dict[Mix, list[str]]:
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


def of_lengths(lengths: Iterable[int]) -> list[str]:
    """Texts of so many words each."""
    words, at, found = " ".join(sentences()).split(), 0, []
    for length in lengths:
        places = np.arange(at, at + length) % len(words)
        found.append(" ".join(words[i] for i in places))
        at += length
    return found
