"""A model in one precision against the same model in fp32, on some texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bei.errors import SetupError
from bei.evaluate.statistics import Estimate, bootstrap, cosines, neighbors_kept, order_kept
from bei.inprocess import Model
from bei.progress import is_watched
from bei.settings import Settings

Measure = Literal["cosine", "neighbors", "order", "scores", "labels", "entities"]
WORDS: Mapping[Measure, str] = {
    "cosine": "cosine to fp32",
    "neighbors": "of the 10 nearest neighbors kept",
    "order": "order of scores kept",
    "scores": "difference of scores",
    "labels": "first labels kept",
    "entities": "entities kept",
}
_QUERIES, _DOCUMENTS = 200, 2000
_RANKED_QUERIES, _RANKED_DOCUMENTS = 20, 40
"""A reranker reads each pair."""
_ORDERED = 100  # documents whose order is compared, for each query
LEAST_TEXTS = 12


@dataclass(frozen=True)
class Comparison:
    """`worst` is the least cosine, or the greatest difference of scores; shares have none."""

    ours: str
    exact: str
    texts: int
    measures: Mapping[Measure, Estimate]
    worst: float | None


Found = tuple[Mapping[Measure, np.ndarray], float | None]


def compare(settings: Settings, texts: Sequence[str]) -> Comparison:
    """Runs both, one after the other. Raises SetupError where the precision is fp32 itself, or texts are too few."""
    if len(texts) < LEAST_TEXTS:
        raise SetupError(f"--texts has {len(texts)} texts; give it {LEAST_TEXTS} or more")
    answers, names = [], []
    for one in (settings, settings.model_copy(update={"precision": "fp32"})):
        with Model.of(one) as model:
            if model.task not in _ANSWERS:
                raise SetupError(f"a {model.task} model has no comparison; {', '.join(_ANSWERS)} models have one")
            names.append(model.computes_in)
            if len(set(names)) < len(names):
                raise SetupError(f"this model runs in {names[0]} already; name another precision: --precision int8")
            answers.append(_ANSWERS[model.task](model, texts))
            measured = _MEASURES[model.task]
    found, worst = measured(*answers)
    return Comparison(
        names[0], names[1], len(texts), {name: bootstrap(values) for name, values in found.items()}, worst
    )


def _vectors(model: Model, texts: Sequence[str]) -> np.ndarray:
    return model.embed(texts, show_progress=is_watched())


def _scores(model: Model, texts: Sequence[str]) -> np.ndarray:
    """float32[Q, D]: each of the first texts as a query over the next ones."""
    queries, documents = texts[:_RANKED_QUERIES], texts[-_RANKED_DOCUMENTS:]
    pairs = [(query, document) for query in queries for document in documents]
    scores = model.score(pairs, show_progress=is_watched())
    return scores.reshape(len(queries), len(documents))


def _lists(model: Model, texts: Sequence[str]) -> np.ndarray:
    """The same, of a model that ranks the documents of a query together."""
    return np.stack([model.rerank(query, texts[-_RANKED_DOCUMENTS:]) for query in texts[:_RANKED_QUERIES]])


def _classes(model: Model, texts: Sequence[str]) -> np.ndarray:
    return model.classify(texts, show_progress=is_watched())


def _entities(model: Model, texts: Sequence[str]) -> list[set[tuple[int, int, str]]]:
    """Of each text, the places of its entities and the label of each."""
    found = model.entities(texts, show_progress=is_watched())
    return [
        {(one.start, one.end, max(one.results, key=lambda label: one.results[label])) for one in of} for of in found
    ]


def _of_vectors(ours: np.ndarray, exact: np.ndarray) -> Found:
    """Each of the first texts is a query, the others are documents; it is no neighbor of itself."""
    alike = cosines(exact, ours)
    queries, documents = min(_QUERIES, len(exact)), min(_DOCUMENTS, len(exact))
    scores = [rows[:queries] @ rows[:documents].T for rows in (exact, ours)]
    for of in scores:
        np.fill_diagonal(of, -np.inf)
    kept = neighbors_kept(*scores)
    for of in scores:
        np.fill_diagonal(of, 0)
    ordered = order_kept(*(of[:, -_ORDERED:] for of in scores))
    return {"cosine": alike, "neighbors": kept, "order": ordered}, float(alike.min())


def _of_scores(ours: np.ndarray, exact: np.ndarray) -> Found:
    apart = np.abs(ours - exact)
    found: Mapping[Measure, np.ndarray] = {
        "scores": apart.mean(1),
        "neighbors": neighbors_kept(exact, ours),
        "order": order_kept(exact, ours),
    }
    return found, float(apart.max())


def _of_classes(ours: np.ndarray, exact: np.ndarray) -> Found:
    apart = np.abs(ours - exact)
    kept = (ours.argmax(1) == exact.argmax(1)).astype(float)
    return {"scores": apart.mean(1), "labels": kept}, float(apart.max())


def _of_entities(ours: Sequence[set[tuple[int, int, str]]], exact: Sequence[set[tuple[int, int, str]]]) -> Found:
    """The share of the entities of either that both have (Jaccard), of texts with an entity. Raises SetupError."""
    either = [(a, b) for a, b in zip(ours, exact, strict=True) if a | b]
    if not either:
        raise SetupError("no entity in these texts, so nothing can be compared; take texts with entities")
    return {"entities": np.array([len(a & b) / len(a | b) for a, b in either])}, None


_ANSWERS: Mapping[str, Callable[..., object]] = {
    "embedding": _vectors,
    "reranker": _scores,
    "list_reranker": _lists,
    "multi_vector": _scores,
    "classifier": _classes,
    "entities": _entities,
}
_MEASURES: Mapping[str, Callable[..., Found]] = {
    "embedding": _of_vectors,
    "reranker": _of_scores,
    "list_reranker": _of_scores,
    "multi_vector": _of_scores,
    "classifier": _of_classes,
    "entities": _of_entities,
}
