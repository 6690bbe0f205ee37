"""infinity's dialect, where it differs from OpenAI's and Cohere's: classify."""

import time
from typing import Literal
from uuid import uuid4

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.inputs import Texts
from bei.api.readings import Reading, Scored
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import LABELS_OF_PROFITS, PROFITS, Prediction, TokenUsage, predictions, token_usage
from bei.serving.model import ServedModel


class Classify(Reading, Scored):
    input: Texts
    input_fields = ("input",)


class Classification(TypedDict):
    id: str
    object: Literal["classify"]
    created: int
    model: str
    data: list[list[Prediction]]
    usage: TokenUsage


async def classify(model: ServedModel, body: Classify, call: Call) -> Result:
    answer = await model.classify(body.input, scoring=body.scoring(), options=body.options(model, call))
    value = {
        "id": f"classify-{uuid4().hex}",
        "object": "classify",
        "created": int(time.time()),
        "model": model.settings.served_model_name,
        "data": predictions(answer, model.checkpoint.labels),
        "usage": token_usage(answer.usage),
    }
    return Result(value, answer.usage, len(body.input))


DIALECT = Dialect(
    "infinity",
    (
        Route(
            "/classify",
            classify,
            "Every label of each text with its score, as infinity's",
            body=Classify,
            ability="classify",
            response=Classification,
            example={"input": [PROFITS]},
            answer={
                "id": "classify-c3be27cf49f74be7bc23d48626d3a6ce",
                "object": "classify",
                "created": 1795464195,
                "model": "small-classifier",
                "data": [LABELS_OF_PROFITS],
                "usage": {"prompt_tokens": 12, "total_tokens": 12},
            },
        ),
    ),
)
