"""A comparison in one sentence, and the bounds that a user sets."""

from collections.abc import Mapping

from bei.evaluate.compare import WORDS, Comparison, Measure
from bei.evaluate.statistics import Estimate

_DECIDES: tuple[Measure, ...] = ("neighbors", "labels", "entities")
"""The measures by which the sentence decides: the first that a comparison has."""
_FINE, _USABLE = 0.95, 0.85
"""Shares kept: at most one result in twenty is another, and at most one in seven."""


def verdict(found: Comparison) -> str:
    """Decides by the lower end of the interval, so that few texts promise nothing."""
    name = next(one for one in _DECIDES if one in found.measures)
    of = found.measures[name]
    precision = found.ours.partition(" ")[0]
    told = f"{WORDS[name]}: {in_words(name, of)}"
    if of.least >= _FINE:
        return f"{precision} is fine for texts like these ({told})."
    if of.least >= _USABLE:
        return f"{precision} is usable for texts like these where a few other results do no harm ({told})."
    return f"{precision} changes the results for texts like these; keep fp32 or bf16 ({told})."


def broken(found: Mapping[Measure, Estimate], bounds: Mapping[Measure, float]) -> list[str]:
    """The bounds that a mean is below. A measure that the task lacks breaks its bound, too."""
    told = []
    for name, bound in bounds.items():
        if name not in found:
            told.append(f"--min-{name}: this task has no such measure; it has {', '.join(found)}")
        elif found[name].mean < bound:
            told.append(f"--min-{name} {bound:g}: it is {found[name].mean:.5f}")
    return told


def in_words(name: Measure, of: Estimate) -> str:
    """A share in percent, a cosine or a difference as it is; its interval in brackets."""
    if name in ("cosine", "scores"):
        return f"{of.mean:.5f} [{of.least:.5f}, {of.most:.5f}]"
    return f"{of.mean:.1%} [{of.least:.1%}, {of.most:.1%}]"
