"""Spans of words with their logits to entities, as in the library `gliner` (decoding/decoder.py, greedy_search): the
best span first, and then each that may stand beside those already taken."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from bei.tasks.entities import Entity
from bei.tasks.scores import activate
from bei.tasks.span_head import Spans
from bei.tokenizer.words import WordWindow, WordWindows

_AT_ONCE = 256  # spans that are compared with those already taken


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`threshold`: scores are above it. `flat`: entities do not overlap; else one may lie in another. `each`: a span
    has every label above the threshold; else the best one. `by_label`: entities of other labels are not looked at.
    `raw`: logits in place of scores."""

    threshold: float
    flat: bool
    each: bool | None
    by_label: bool = False
    raw: bool = False

    @property
    def least(self) -> float:
        """The logit of the threshold."""
        with np.errstate(divide="ignore"):
            return float(np.log(self.threshold) - np.log1p(-self.threshold))


@dataclass
class Held:
    """Counts the spans that are held, of `size` bytes each. `check` is called with all their bytes, and may raise."""

    size: int
    check: Callable[[int], object]
    spans: int = 0

    def add(self, spans: int) -> None:
        self.spans += spans
        self.check(self.spans * self.size)


def find(
    texts: Sequence[str],
    windows: WordWindows,
    spans: Iterator[Iterable[Spans]],
    labels: Sequence[str],
    wanted: Wanted,
    held: Held,
) -> list[list[Entity]]:
    """The entities of each text, in their order. `spans` are those of each window."""
    found: list[list[Entity]] = []
    for owner, own in groupby(windows.windows, key=lambda window: window.owner):
        parts, starts, ends = [], np.zeros(0, np.int32), np.zeros(0, np.int32)
        for window in own:
            starts, ends = _extended(starts, window, window.starts), _extended(ends, window, window.ends)
            for of in next(spans):
                parts.append(of._replace(starts=of.starts + window.first, ends=of.ends + window.first))
                held.add(len(of.starts))
        joined = _joined(parts, each=bool(wanted.each))
        chosen = _by_label(joined, len(starts), wanted) if wanted.by_label else _chosen(joined, len(starts), wanted)
        held.add(len(chosen.starts) - sum(len(of.starts) for of in parts))
        values = chosen.logits if wanted.raw else activate(chosen.logits, "sigmoid")
        found.append(
            [
                Entity(texts[owner][start:end], 0, start, end, {labels[label]: value})
                for start, end, label, value in zip(
                    starts[chosen.starts].tolist(), ends[chosen.ends].tolist(), chosen.labels, values, strict=True
                )
                if start < end
            ]
        )
    return found


def _extended(places: np.ndarray, window: WordWindow, more: np.ndarray) -> np.ndarray:
    """The places of a text's words so far, and those of its next window."""
    return np.concatenate([places[: window.first], more])


def _joined(parts: Sequence[Spans], *, each: bool) -> Spans:
    """The spans of all windows, the best of equal ones: by their starts, ends, and falling logits."""
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Spans(nothing, nothing, nothing, np.zeros(0, np.float32))
    starts, ends, labels, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((labels, -logits, ends, starts))
    if each:
        by_label = np.lexsort((-logits, labels, ends, starts))
        same = ~_changes(starts[by_label], ends[by_label], labels[by_label])
        again = np.zeros(len(order), bool)
        again[by_label[same]] = True
        order = order[~again[order]]
    else:
        order = order[_changes(starts[order], ends[order])]
    return Spans(starts[order], ends[order], labels[order], logits[order])


def _changes(*columns: np.ndarray) -> np.ndarray:
    """bool[n]: whether a row differs from the one before; true for the first."""
    found = np.zeros(len(columns[0]), bool)
    found[:1] = True
    for column in columns:
        found[1:] |= column[1:] != column[:-1]
    return found


def _chosen(spans: Spans, words: int, wanted: Wanted) -> Spans:
    """`spans` are in the order of `_joined`, where the first of a span is its best."""
    first = _changes(spans.starts, spans.ends)
    best = np.flatnonzero(first)
    taken = _taken(spans.starts[best], spans.ends[best], spans.logits[best], words, flat=wanted.flat)
    kept = np.flatnonzero(taken[np.cumsum(first) - 1])
    kept = kept[np.lexsort((spans.labels[kept], spans.ends[kept], -spans.logits[kept], spans.starts[kept]))]
    return Spans(*(column[kept] for column in spans))


def _by_label(spans: Spans, words: int, wanted: Wanted) -> Spans:
    """As `_chosen`, for each label as if it were alone."""
    own = [np.flatnonzero(spans.labels == label) for label in np.unique(spans.labels)]
    chosen = [_chosen(Spans(*(column[at] for column in spans)), words, wanted) for at in own]
    if not chosen:
        return spans
    whole = Spans(*(np.concatenate(column) for column in zip(*chosen, strict=True)))
    order = np.lexsort((whole.labels, whole.ends, -whole.logits, whole.starts))
    return Spans(*(column[order] for column in whole))


def _taken(starts: np.ndarray, ends: np.ndarray, logits: np.ndarray, words: int, *, flat: bool) -> np.ndarray:
    """bool[n], of distinct spans."""
    taken, beside = np.zeros(len(starts), bool), (_Apart if flat else _Nested)(words)
    order = np.argsort(-logits, kind="stable")
    for some in (order[i : i + _AT_ONCE] for i in range(0, len(order), _AT_ONCE)):
        for i in some[beside.allow(starts[some], ends[some])].tolist():
            if beside.allow(starts[i], ends[i]):
                beside.take(int(starts[i]), int(ends[i]))
                taken[i] = True
    return taken


class _Apart:
    """Spans that have no word in common. `_next` is the first word of a span at or after each word."""

    def __init__(self, words: int):
        self._next = np.full(words, words)

    def allow(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        free: np.ndarray = self._next[starts] > ends
        return free

    def take(self, start: int, end: int) -> None:
        self._next[start : end + 1] = np.arange(start, end + 1)
        before = self._next[:start]
        np.minimum(before, start, out=before)


class _Nested:
    """Spans of which none crosses another. For each word, of the spans that have it and the word before, `_end` is the
    first end; of those that have it and the word after, `_start` is the last start."""

    def __init__(self, words: int):
        self._end, self._start = np.full(words, words), np.full(words, -1)

    def allow(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        free: np.ndarray = (self._end[starts] >= ends) & (self._start[ends] <= starts)
        return free

    def take(self, start: int, end: int) -> None:
        after, before = self._end[start + 1 : end + 1], self._start[start:end]
        np.minimum(after, end, out=after)
        np.maximum(before, start, out=before)
