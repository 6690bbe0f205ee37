"""The texts of a load: a mix that comes with the package, a file, or lengths by a distribution."""

import re
from pathlib import Path

import numpy as np

from bei.engines.calibration import texts_of
from bei.errors import SetupError, short
from bei.files import expanded
from bei.samples.mixes import Mix, of_lengths, text_sets

_COUNT = 256
_MOST_WORDS = 100_000
_LENGTHS = "use a number of words (120), a range (10-500), or lognormal:MEDIAN:SIGMA (lognormal:120:0.8)"


def texts(mix: Mix | None, file: Path | None, lengths: str | None, seed: int) -> list[str]:
    """The texts, the same for the same arguments. Raises SetupError."""
    named = [flag for flag, given in (("--mix", mix), ("--texts", file), ("--lengths", lengths)) if given is not None]
    if len(named) > 1:
        raise SetupError(f"{' and '.join(named)} each say which texts; leave one")
    if file is not None:
        found = list(texts_of(expanded(file), "--texts"))
        if not found:
            raise SetupError(f"--texts {file}: no text in it")
        return found
    if lengths is not None:
        return of_lengths(_drawn(lengths, np.random.default_rng(seed)).tolist())
    return text_sets()[mix or "mixed"]


def _drawn(lengths: str, rng: np.random.Generator) -> np.ndarray:
    """int64[_COUNT], numbers of words."""
    if found := re.fullmatch(r"(\d+)(?:-(\d+))?", lengths):
        least, most = int(found[1]), int(found[2] or found[1])
        if 1 <= least <= most <= _MOST_WORDS:
            return rng.integers(least, most + 1, _COUNT)
    elif found := re.fullmatch(r"lognormal:(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", lengths):
        median, sigma = float(found[1]), float(found[2])
        if 1 <= median <= _MOST_WORDS and sigma <= 3:
            drawn = rng.lognormal(np.log(median), sigma, _COUNT)
            return np.clip(drawn.round(), 1, _MOST_WORDS).astype(np.int64)
    raise SetupError(f"--lengths {short(lengths)}: {_LENGTHS}")
