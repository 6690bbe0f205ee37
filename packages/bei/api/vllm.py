"""vLLM's dialect, which SGLang shares: scores of pairs, classes, and the vectors and scores of any pooling model."""

import time
from typing import Any, ClassVar, Literal
from uuid import uuid4

import numpy as np
from pydantic import AliasChoices, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei import __version__
from bei.api.call import Call
from bei.api.error_shapes import OPENAI, TEI
from bei.api.fields import Synonyms, asks_nothing
from bei.api.inputs import Items, Texts
from bei.api.output import Written
from bei.api.readings import Pairs, Reading, Scored, Vectors
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import PROFITS, TokenUsage, token_usage
from bei.checkpoint.task import Scoring, Task
from bei.errors import Invalid
from bei.serving.answers import Usage
from bei.serving.model import ServedModel
from bei.serving.registry import Registry


class Score(Synonyms, Pairs):
    """One text against one or many, or equally many on both sides. Other names: `queries` and `documents` or `items`,
    `data_1` and `data_2`."""

    text_1: Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Texts = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
    input_fields = ("text_1", "text_2")


PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
_TASKS: dict[Task, PoolingTask] = {
    "embedding": "embed",
    "classifier": "classify",
    "reranker": "classify",
    "multi_vector": "token_embed",
    "entities": "token_classify",
}
"""The task of a request that names none."""


class Pooling(Written):
    """`task` is what the model does. Numbers are activated unless `use_activation` is false: vectors get length 1, and
    classes get shares."""

    input: Items
    task: PoolingTask | None = None
    _prompts: ClassVar[tuple[str, ...]] = ("prompt_name", "instruction", "input_type")
    input_fields = ("input",)

    def check_scores(self) -> None:
        """Raises Invalid for a field that scores do not have."""
        for name in _OF_VECTORS:
            value = getattr(self, name)
            if value is not None and not asks_nothing(name, value):
                raise Invalid(f"`{name}` is for vectors, and this model gives scores; leave it out", param=name)


_OF_VECTORS = frozenset({*Vectors.model_fields, "output_dtype", "embedding_type", "encoding_type"}) - {
    *Reading.model_fields,
    "use_activation",
}


class Classify(Reading, Scored):
    input: Items
    input_fields = ("input",)


class PooledItem(TypedDict):
    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PooledList(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledItem]
    usage: TokenUsage


class ClassItem(TypedDict):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassList(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassItem]
    usage: TokenUsage


class Version(TypedDict):
    version: str


class ScoreItem(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class ScoreList(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreItem]
    usage: TokenUsage


async def score(model: ServedModel, body: Score, call: Call) -> Result:
    first, second = body.text_1, body.text_2
    if len(first) not in (1, len(second)):
        one, other = body.given()
        raise Invalid(
            f"`{one}` has {len(first)} texts and `{other}` {len(second)}; send one and many, or as many of each",
            param=one,
        )
    pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
    answer = await model.score(pairs, scoring=body.scoring(), options=body.options(model, call))
    data = [{"index": i, "object": "score", "score": row} for i, row in enumerate(answer.rows)]
    return _listed(model, "score", data, answer.usage)


async def pooling(model: ServedModel, body: Pooling, call: Call) -> Result:
    form, options = body.form(), body.options(model, call)
    scoring: Scoring | None = "identity" if body.use_activation is False else None
    task = body.task or _TASKS.get(model.checkpoint.task, "embed")
    if task in ("classify", "token_classify"):
        body.check_scores()
    match task:
        case "embed":
            answer = await model.embed(body.input, **body.finish(), options=options)
        case "token_embed":
            answer = await model.embed_tokens(body.input, **{"normalize": True, **body.finish()}, options=options)
        case "classify":
            answer = await model.classify(body.input, scoring=scoring, options=options)
        case "token_classify":
            answer = await model.classify_tokens(body.input, scoring=scoring, options=options)
    rows = (
        form.written(answer.rows, model) if isinstance(answer.rows, np.ndarray) else form.matrices(answer.rows, model)
    )
    data = [{"index": i, "object": "pooling", "data": row} for i, row in enumerate(rows)]
    return _listed(model, "pool", data, answer.usage)


async def classify(model: ServedModel, body: Classify, call: Call) -> Result:
    answer = await model.classify(body.input, scoring=body.scoring(), options=body.options(model, call))
    labels, best = model.checkpoint.labels, answer.order[:, 0].tolist()
    data = [
        {"index": i, "label": labels[best[i]], "probs": row, "num_classes": len(labels)}
        for i, row in enumerate(answer.rows)
    ]
    return _listed(model, "classify", data, answer.usage)


async def version(registry: Registry, body: None, call: Call) -> Result:
    return Result({"version": __version__})


def _listed(model: ServedModel, kind: str, data: list[dict[str, Any]], usage: Usage) -> Result:
    value = {
        "id": f"{kind}-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.settings.served_model_name,
        "data": data,
        "usage": token_usage(usage),
    }
    return Result(value, usage, len(data))


_SCORE = Route(
    "/v1/score",
    score,
    "Scores of pairs, as vLLM's",
    body=Score,
    ability="score",
    response=ScoreList,
    example={"text_1": "What is Deep Learning?", "text_2": ["Deep Learning is...", "Berlin is a city."]},
    answer={
        "id": "score-23d515164fbc421ca997c145837ce33e",
        "object": "list",
        "created": 1795464194,
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "data": [
            {"index": 0, "object": "score", "score": 0.6746493},
            {"index": 1, "object": "score", "score": 0.036521353},
        ],
        "usage": {"prompt_tokens": 22, "total_tokens": 22},
    },
)
_CLASSES = Route(
    "/v1/classify",
    classify,
    "The best label of each text, and the score of every label in their order, as vLLM's",
    body=Classify,
    ability="classify",
    response=ClassList,
    example={"input": [PROFITS]},
    answer={
        "id": "classify-0f6bd0d2fb0d4b3ea2ebd6b8a83b6d6f",
        "object": "list",
        "created": 1795464195,
        "model": "small-classifier",
        "data": [
            {
                "index": 0,
                "label": "business",
                "probs": [0.94971937, 0.02349987, 0.005321265, 0.011117918, 0.010341699],
                "num_classes": 5,
            }
        ],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    },
)
_POOLING = Route(
    "/pooling",
    pooling,
    "The vectors or scores of a model of any task, as vLLM's",
    body=Pooling,
    response=PooledList,
    example={"input": "What is Deep Learning?", "dimensions": 4},
    answer={
        "id": "pool-5c2b6df0d1cc4a2b9c5cf6e4a5a3e1aa",
        "object": "list",
        "created": 1795464195,
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "data": [{"index": 0, "object": "pooling", "data": [-0.8924037, -0.3814904, 0.22631614, 0.08283565]}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    errors=TEI,
)
_VERSION = Route("/version", version, "The version of the server", method="GET", response=Version, errors=TEI)
DIALECT = Dialect("vllm", (_SCORE, _SCORE.at("/score", TEI), _CLASSES, _POOLING, _VERSION), errors=OPENAI)
