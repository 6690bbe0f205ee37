"""Mixed requests to a model with the right answers: every input was sent alone, before the load.

A row is the result of an input: a vector, or numbers by name (label, entity, term, or `score`).
"""

import asyncio
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import ormsgpack

from bei.samples.stsb import sentences
from benchmarks.wire import Ask, Http1, Reply

COSINE = 0.9999
DIFFERENCE = 2e-3  # of a score or a weight
MAX_TEXTS = 2048
_WORDS = 400  # of the longest text, which is more than any of our models reads
_ALONE = 8  # inputs in flight while answers are learned, each in a request of its own
_LIMIT = 60.0  # seconds
_QUERY = "Striker scores twice in cup final"

Form = Literal["json", "base64", "msgpack"]
Input = str | list[int]
Row = Sequence[float] | dict[Any, float]


@dataclass(frozen=True)
class Task:
    """`body` makes the body of inputs; `rows` returns the rows of an answer."""

    config: str
    path: str
    body: Callable[[list[Input]], dict[str, Any]]
    rows: Callable[[Any], list[Row]]


def _vectors(answer: Any) -> list[Row]:
    rows = [item["embedding"] for item in answer["data"]]
    return [np.frombuffer(b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]


def _entities(answer: Any) -> list[Row]:
    return [
        {(one["start"], one["end"], label): score for one in of for label, score in one["results"].items()}
        for of in answer
    ]


TASKS = {
    "embedding": Task("config.yaml", "/v1/embeddings", lambda inputs: {"input": inputs}, _vectors),
    "reranker": Task(
        "examples/small-reranker/config.yaml",
        "/rerank",
        lambda inputs: {"query": _QUERY, "texts": inputs},
        lambda answer: [{"score": one["score"]} for one in answer],
    ),
    "classifier": Task(
        "examples/small-classifier/config.yaml",
        "/predict",
        lambda inputs: {"inputs": [[text] for text in inputs]},
        lambda answer: [{one["label"]: one["score"] for one in of} for of in answer],
    ),
    "pii": Task(
        "examples/small-pii/config.yaml",
        "/predict_tokens",
        lambda inputs: {"inputs": inputs, "aggregation_strategy": "simple"},
        _entities,
    ),
    "splade": Task(
        "examples/small-splade/config.yaml",
        "/embed_sparse",
        lambda inputs: {"inputs": inputs},
        lambda answer: [{one["index"]: one["value"] for one in of} for of in answer],
    ),
}


@dataclass(frozen=True, slots=True)
class Planned:
    ask: Ask
    picks: np.ndarray  # the inputs, in order
    form: Form


class Traffic:
    """Requests to one model, and the errors in their answers."""

    def __init__(self, task: Task, inputs: Sequence[Input], expected: Sequence[Row]):
        self._task, self._inputs, self._expected = task, inputs, expected
        self._texts = np.array([i for i, item in enumerate(inputs) if isinstance(item, str)])
        self._ids = np.array([i for i, item in enumerate(inputs) if not isinstance(item, str)])
        self._matrix = None if isinstance(expected[0], dict) else _unit(np.array(expected, np.float32))

    @classmethod
    async def learn(cls, task: Task, http: Http1, inputs: Sequence[Input]) -> "Traffic":
        """Sends each input alone. Raises ValueError for one without an answer."""
        turn = asyncio.Semaphore(_ALONE)

        async def alone(item: Input) -> Row:
            async with turn:
                reply = await http.ask(Ask(task.path, orjson.dumps(task.body([item]))), _LIMIT)
            if reply.status != 200:
                raise ValueError(f"{str(item)[:80]!r} alone: {reply.status} {bytes(reply.body[:200])!r}")
            return task.rows(orjson.loads(reply.body))[0]

        return cls(task, inputs, await asyncio.gather(*(alone(item) for item in inputs)))

    def plan(self, rng: np.random.Generator, texts: int, headers: dict[str, str] | None = None) -> Planned:
        """A request of so many inputs, texts or sometimes token ids, in one of the task's forms."""
        pool = self._ids if len(self._ids) and rng.random() < 0.1 else self._texts
        picks = rng.choice(pool, texts)
        forms: tuple[Form, ...] = ("json", "msgpack") if self._matrix is None else ("json", "base64", "msgpack")
        form = forms[rng.integers(len(forms))]
        body, headers = self._task.body([self._inputs[i] for i in picks]), dict(headers or {})
        if form == "base64":
            body["encoding_format"] = "base64"
        elif form == "msgpack":
            headers["accept"] = "application/msgpack"
        return Planned(Ask(self._task.path, orjson.dumps(body), headers), picks, form)

    def wrong(self, planned: Planned, reply: Reply) -> int:
        """How many rows of a 200 differ from those that their inputs got alone. Raises ValueError for a malformed
        answer."""
        try:
            answer = (ormsgpack.unpackb if planned.form == "msgpack" else orjson.loads)(bytes(reply.body))
            rows = self._task.rows(answer)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not an answer: {exc!r}") from None
        if len(rows) != len(planned.picks):
            raise ValueError(f"{len(rows)} rows for {len(planned.picks)} inputs")
        if self._matrix is None:
            return sum(differ(row, self._expected[i]) for row, i in zip(rows, planned.picks, strict=True))
        cosines = (_unit(np.array(rows, np.float32)) * self._matrix[planned.picks]).sum(1)
        return int((~(cosines >= COSINE)).sum())  # NaN counts as different


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def differ(row: dict[Any, float], expected: dict[Any, float]) -> bool:
    """A name that one of them lacks counts as 0."""
    return not all(abs(row.get(k, 0.0) - expected.get(k, 0.0)) <= DIFFERENCE for k in row.keys() | expected.keys())


def texts_of_all_lengths(rng: np.random.Generator, count: int) -> list[str]:
    """From one word to more than any of our models reads, uniformly distributed on a logarithmic scale."""
    words = " ".join(sentences()).split()
    lengths = np.exp(rng.uniform(0, np.log(_WORDS), count)).astype(int)
    starts = rng.integers(len(words) - _WORDS, size=count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def ids_of_all_lengths(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Ids of whole words of BERT's vocabulary."""
    lengths = np.exp(rng.uniform(0, np.log(_WORDS), count)).astype(int)
    return [rng.integers(1996, 29000, length).tolist() for length in lengths]


def request_sizes(rng: np.random.Generator) -> int:
    """The number of texts in a request: mostly one, sometimes as many as allowed."""
    low, high = [(1, 1), (2, 16), (17, 128), (129, MAX_TEXTS)][rng.choice(4, p=[0.6, 0.25, 0.12, 0.03])]
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
