"""NVIDIA NIM's dialect, where it differs from OpenAI's: the ranking of passages."""

from collections.abc import Mapping
from typing import Any

from pydantic import StrictStr
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.error_shapes import OPENAI
from bei.api.fields import Part
from bei.api.readings import PairReading
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import TokenUsage, token_usage
from bei.serving.model import ServedModel


class Passage(Part):
    text: StrictStr


class Ranking(PairReading):
    query: Passage
    passages: list[Passage]

    def given(self) -> Mapping[str, Any]:
        return {"query.text": self.query.text, "passages": [passage.text for passage in self.passages]}


class RankedPassage(TypedDict):
    index: int
    logit: float


class Rankings(TypedDict):
    rankings: list[RankedPassage]
    usage: TokenUsage


async def ranking(model: ServedModel, body: Ranking, call: Call) -> Result:
    """Best first."""
    texts = [passage.text for passage in body.passages]
    answer = await model.rerank(body.query.text, texts, scoring="identity", options=body.options(model, call))
    ranked = [{"index": i, "logit": answer.rows[i]} for i in answer.order.tolist()]
    return Result({"rankings": ranked, "usage": token_usage(answer.usage)}, answer.usage, len(texts))


DIALECT = Dialect(
    "nvidia",
    (
        Route(
            "/v1/ranking",
            ranking,
            "Passages ranked by a query, best first, with logits, as NVIDIA NIM's",
            body=Ranking,
            ability="rerank",
            response=Rankings,
            example={
                "query": {"text": "Striker scores twice in cup final"},
                "passages": [
                    {"text": "The striker scored two goals in the second half."},
                    {"text": "Quarterly profits jumped 76% to $1.13bn."},
                ],
            },
            answer={
                "rankings": [{"index": 0, "logit": 0.687}, {"index": 1, "logit": -2.038}],
                "usage": {"prompt_tokens": 40, "total_tokens": 40},
            },
        ),
    ),
    errors=OPENAI,
)
