"""Token scores to entities, exactly as in transformers' TokenClassificationPipeline
(pipelines/token_classification.py), for all texts of a request at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from bei.tasks.scores import activate
from bei.tokenizer import Windows

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
class _Units:
    """Tokens, words or entities in order: int[n], except the scores, float32[n]."""

    windows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class _Labels:
    """For each label: whether it begins an entity (B-); its tag, without B- or I-; the name of the entity."""

    begins: np.ndarray
    tags: np.ndarray
    names: list[str]


def tokens(
    texts: Sequence[str],
    windows: Windows,
    logits: np.ndarray,
    labels: Sequence[str],
    vocabulary: Sequence[str],
    unknown: int | None,
    *,
    raw_scores: bool,
) -> list[list[Entity]]:
    """Strategy `none`: each token, special tokens included, with its best label, or with every label's logit. Where
    windows overlap, the token comes from the window with more text around it. An unknown token is given as it stands in
    the text."""
    rows = logits if raw_scores else activate(logits, "softmax")
    owners = np.repeat(windows.owners, windows.lengths)
    found: list[list[Entity]] = [[] for _ in texts]
    for i in np.flatnonzero(windows.inner).tolist():
        owner, id, start, end = int(owners[i]), int(windows.ids[i]), int(windows.starts[i]), int(windows.ends[i])
        token = texts[owner][start:end] if id == unknown and not windows.special[i] else vocabulary[id]
        best = int(rows[i].argmax())
        results = dict(zip(labels, rows[i], strict=True)) if raw_scores else {labels[best]: rows[i, best]}
        found[owner].append(Entity(token, id, start, end, results))
    return found


def aggregate(
    texts: Sequence[str],
    windows: Windows,
    logits: np.ndarray,
    labels: tuple[str, ...],
    strategy: Strategy,
    ignored: Sequence[str],
    *,
    raw_scores: bool,
) -> list[list[Entity]]:
    """The other strategies: neighbors of one tag form one entity, and labels of `ignored` form none."""
    names = _labels(labels).names
    rows = logits if raw_scores else activate(logits, "softmax")
    units = _grouped(_labeled(windows, rows, strategy), _labels(labels))
    kept = np.flatnonzero(np.isin(units.labels, [i for i, name in enumerate(names) if name not in ignored]))
    owners = windows.owners[units.windows]
    found: list[list[Entity]] = [[] for _ in texts]
    columns = (owners, units.labels, units.starts, units.ends)
    for i, (owner, label, start, end) in zip(kept, zip(*(c[kept].tolist() for c in columns), strict=True), strict=True):
        found[owner].append(Entity(texts[owner][start:end], 0, start, end, {names[label]: units.scores[i]}))
    for owner in np.flatnonzero(np.bincount(windows.owners) > 1):
        found[owner] = _without_overlaps(found[owner])
    return found


@cache
def _labels(labels: tuple[str, ...]) -> _Labels:
    tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    return _Labels(
        np.array([label.startswith("B-") for label in labels]),
        np.array([tags.index(tag) for tag in tags]),
        [label.split("-", 1)[-1] for label in labels],
    )


def _labeled(windows: Windows, rows: np.ndarray, strategy: Strategy) -> _Units:
    """Each token with its best label for `simple`; otherwise each word with the label of the strategy."""
    of_window = np.repeat(np.arange(len(windows.lengths)), windows.lengths)
    kept = np.flatnonzero(~windows.special)
    of_window, rows, starts, ends = of_window[kept], rows[kept], windows.starts[kept], windows.ends[kept]
    if strategy != "simple" and len(kept):
        begins = ~windows.continues[kept] | _changes(of_window)
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(kept)) - 1
        rows = _of_words(rows, first, last, strategy)
        of_window, starts, ends = of_window[first], starts[first], ends[last]
    best = rows.argmax(1)
    return _Units(of_window, best, rows[np.arange(len(rows)), best], starts, ends)


def _of_words(rows: np.ndarray, first: np.ndarray, last: np.ndarray, strategy: Strategy) -> np.ndarray:
    """float32[tokens, labels] → float32[words, labels]: the first token's, the most confident token's, or the mean."""
    words: np.ndarray
    match strategy:
        case "average":
            words = np.add.reduceat(rows, first) / (last - first + 1)[:, None].astype(np.float32)
        case "max":
            highest = rows.max(1)
            owners = np.repeat(np.arange(len(first)), last - first + 1)
            surest = np.flatnonzero(highest == np.maximum.reduceat(highest, first)[owners])
            words = rows[surest[np.unique(owners[surest], return_index=True)[1]]]
        case _:
            words = rows[first]
    return words


def _grouped(units: _Units, labels: _Labels) -> _Units:
    """Runs of one tag, cut before each B-; the score of a run is the mean."""
    if not len(units.labels):
        return units
    cuts = labels.begins[units.labels] | _changes(labels.tags[units.labels]) | _changes(units.windows)
    first = np.flatnonzero(cuts)
    last = np.append(first[1:], len(cuts)) - 1
    means = np.add.reduceat(units.scores, first) / (last - first + 1).astype(np.float32)
    return _Units(units.windows[first], units.labels[first], means, units.starts[first], units.ends[last])


def _changes(values: np.ndarray) -> np.ndarray:
    """bool[n]: whether a value differs from the one before; true for the first."""
    return np.append(True, values[1:] != values[:-1])


def _without_overlaps(entities: Iterable[Entity]) -> list[Entity]:
    """Of two overlapping entities from neighboring windows the longer one stays, then the more confident one."""

    def weight(entity: Entity) -> tuple[int, np.float32]:
        return entity.end - entity.start, next(iter(entity.results.values()))

    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if kept and kept[-1].start <= entity.start < kept[-1].end:
            kept[-1] = max(kept[-1], entity, key=weight)
        else:
            kept.append(entity)
    return kept
