"""BEI's own dialect: /predict_tokens, in TEI's style. Its other routes are OpenAI's and TEI's."""

from pydantic import StrictBool, StrictStr
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call, deadline
from bei.api.fields import Body, agreed
from bei.api.inputs import Documents
from bei.api.named_entities import NamedEntities, stated
from bei.api.readings import Side
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.serving.answers import Options
from bei.serving.model import ServedModel
from bei.tasks.entities import Strategy


class EntityParameters(NamedEntities):
    """How tokens become entities. Labels of `ignore_labels` (by default `O`) are dropped when tokens are aggregated."""

    aggregation_strategy: Strategy | None = None
    ignore_labels: list[StrictStr] | None = None


class PredictTokens(EntityParameters, Body):
    """`parameters` is huggingface_hub's place for the same fields. Unless `truncate` is false, texts longer than the
    model are read in windows; so nothing is cut, and `truncation_direction` has no effect."""

    inputs: Documents
    truncate: StrictBool | None = None
    truncation_direction: Side | None = None
    raw_scores: StrictBool | None = None
    parameters: EntityParameters | None = None
    input_fields = ("inputs",)


class EntityToken(TypedDict):
    token: str
    token_id: int
    start: int
    end: int
    results: dict[str, float]


async def predict_tokens(model: ServedModel, body: PredictTokens, call: Call) -> Result:
    inside = body.parameters or EntityParameters()
    options = Options(truncate=body.truncate, deadline=deadline(call), is_background=call.is_background)
    named = stated(body, inside)
    if named is not None:
        answer = await model.named_entities(body.inputs, named.labels, named.wanted, options=options)
        return Result(answer.rows, answer.usage, len(answer.rows))
    ignored, strategy = (
        agreed({name: getattr(body, name), f"parameters.{name}": getattr(inside, name)})
        for name in ("ignore_labels", "aggregation_strategy")
    )
    answer = await model.entities(
        body.inputs,
        strategy=strategy or "none",
        raw_scores=bool(body.raw_scores),
        ignore_labels=("O",) if ignored is None else ignored,
        options=options,
    )
    return Result(answer.rows, answer.usage, len(answer.rows))


PREDICT_TOKENS = Route(
    "/predict_tokens",
    predict_tokens,
    "Entities, or every token's label",
    body=PredictTokens,
    ability="entities",
    response=list[list[EntityToken]],
    example={"inputs": [["My name is Maria Schmidt."]], "aggregation_strategy": "simple"},
    answer=[
        [
            {"token": "Maria", "token_id": 0, "start": 11, "end": 16, "results": {"GIVEN_NAME": 0.99953485}},
            {"token": "Schmidt", "token_id": 0, "start": 17, "end": 24, "results": {"SURNAME": 0.99959904}},
        ]
    ],
)
DIALECT = Dialect("baseten", (PREDICT_TOKENS,))
