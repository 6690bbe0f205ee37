"""vLLM's dialect: scores of pairs."""

import time
from collections.abc import Mapping
from typing import Any, Literal
from uuid import uuid4

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.error_shapes import OPENAI, TEI
from bei.api.fields import Synonyms
from bei.api.inputs import Texts
from bei.api.readings import Pairs
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import TokenUsage, token_usage
from bei.errors import Invalid
from bei.serving.model import ServedModel


class Score(Synonyms, Pairs):
    """One text against one or many, or equally many on both sides. Other names: `queries` and `documents` or `items`,
    `data_1` and `data_2`."""

    text_1: Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Texts = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))

    def given(self) -> Mapping[str, Any]:
        return {self.name_of("text_1"): self.text_1, self.name_of("text_2"): self.text_2}


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
    value = {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.settings.served_model_name,
        "data": [{"index": i, "object": "score", "score": row} for i, row in enumerate(answer.rows)],
        "usage": token_usage(answer.usage),
    }
    return Result(value, answer.usage, len(pairs))


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
DIALECT = Dialect("vllm", (_SCORE, _SCORE.at("/score", TEI)), errors=OPENAI)
