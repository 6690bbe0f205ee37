"""Token scores to entities, exactly as transformers' TokenClassificationPipeline makes them
(pipelines/token_classification.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Literal

import numpy as np

from bei.tasks.scores import activate
from bei.tokenizer import Piece, Window

Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class Entity:
    """`start` and `end` count characters of the text; `results` maps labels to scores."""

    token: str
    token_id: int
    start: int
    end: int
    results: Mapping[str, np.float32]


@dataclass(frozen=True, slots=True)
class _Span:
    label: str
    score: np.float32
    start: int
    end: int


def find(
    texts: Sequence[str],
    windows: Sequence[Sequence[Window]],
    rows: Sequence[np.ndarray],
    labels: Sequence[str],
    strategy: Strategy,
    raw_scores: bool,
    ignored: Sequence[str],
) -> list[list[Entity]]:
    """The entities of each text; `rows`: logits, float32[tokens, labels], of all windows in order."""
    left = iter(rows if raw_scores else [activate(row, "softmax") for row in rows])
    found = []
    for text, of_text in zip(texts, windows, strict=True):
        scores = list(islice(left, len(of_text)))
        if strategy == "none":
            found.append(tokens(of_text, scores, labels, every_label=raw_scores))
        else:
            found.append(aggregate(text, of_text, scores, labels, strategy, ignored))
    return found


def tokens(
    windows: Sequence[Window], scores: Sequence[np.ndarray], labels: Sequence[str], *, every_label: bool
) -> list[Entity]:
    """Strategy `none`: each token of a text, specials included, with its best label or all of them; where windows
    overlap each token is the one with more of the text around it. `scores`: float32[tokens, labels] a window."""
    return [
        Entity(piece.token, piece.id, piece.start, piece.end, _results(row, labels, every_label))
        for window, rows in zip(windows, scores, strict=True)
        for piece, row in zip(
            window.pieces[window.inner.start : window.inner.stop],
            rows[window.inner.start : window.inner.stop],
            strict=True,
        )
    ]


def aggregate(
    text: str,
    windows: Sequence[Window],
    scores: Sequence[np.ndarray],
    labels: Sequence[str],
    strategy: Strategy,
    ignored: Sequence[str],
) -> list[Entity]:
    """The other strategies: neighbours of one label are one entity, and a label of `ignored` is none."""
    spans = [
        span
        for window, rows in zip(windows, scores, strict=True)
        for span in _grouped(_spans(window.pieces, rows, labels, strategy))
        if span.label not in ignored
    ]
    if len(windows) > 1:
        spans = _without_overlaps(spans)
    return [Entity(text[s.start : s.end], 0, s.start, s.end, {s.label: s.score}) for s in spans]


def _results(row: np.ndarray, labels: Sequence[str], every_label: bool) -> dict[str, np.float32]:
    if every_label:
        return dict(zip(labels, row, strict=True))
    best = int(row.argmax())
    return {labels[best]: row[best]}


def _spans(pieces: Sequence[Piece], rows: np.ndarray, labels: Sequence[str], strategy: Strategy) -> list[_Span]:
    """A span a token for `simple`, else one a word."""
    words: list[list[tuple[Piece, np.ndarray]]] = []
    for piece, row in zip(pieces, rows, strict=True):
        if piece.special:
            continue
        if words and piece.continues and strategy != "simple":
            words[-1].append((piece, row))
        else:
            words.append([(piece, row)])
    return [_span(word, labels, strategy) for word in words]


def _span(word: list[tuple[Piece, np.ndarray]], labels: Sequence[str], strategy: Strategy) -> _Span:
    rows = [row for _, row in word]
    match strategy:
        case "average":
            row = np.mean(rows, axis=0)
        case "max":
            row = max(rows, key=np.max)
        case _:
            row = rows[0]
    best = int(row.argmax())
    return _Span(labels[best], row[best], word[0][0].start, word[-1][0].end)


def _grouped(spans: Sequence[_Span]) -> list[_Span]:
    """Runs of one tag, cut before each B-."""
    number, last = 0, None
    numbers = []
    for span in spans:
        begins, tag = _tag(span.label)
        number += begins or tag != last
        last = tag
        numbers.append(number)
    runs = [[span for _, span in run] for _, run in groupby(zip(numbers, spans, strict=True), key=lambda pair: pair[0])]
    return [
        _Span(run[0].label.split("-", 1)[-1], sum(s.score for s in run) / len(run), run[0].start, run[-1].end)
        for run in runs
    ]


def _tag(label: str) -> tuple[bool, str]:
    """Whether the label begins an entity, and the label without B- or I-."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(spans: Sequence[_Span]) -> list[_Span]:
    """Of two that overlap the longer one stays, then the surer."""
    kept: list[_Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if kept and kept[-1].start <= span.start < kept[-1].end:
            kept[-1] = max(kept[-1], span, key=lambda span: (span.end - span.start, span.score))
        else:
            kept.append(span)
    return kept
