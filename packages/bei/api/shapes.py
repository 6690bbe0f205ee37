"""Parts of answers that several dialects share."""

from collections.abc import Sequence

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.serving.answers import Ranked, Usage


class TokenUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


def token_usage(usage: Usage) -> TokenUsage:
    return {"prompt_tokens": usage.tokens, "total_tokens": usage.tokens}


class Prediction(TypedDict):
    label: str
    score: float


def predictions(answer: Ranked, labels: Sequence[str]) -> list[list[Prediction]]:
    """Every label of each text, best first."""
    pairs = zip(answer.rows, answer.order.tolist(), strict=True)
    return [[{"label": labels[i], "score": scores[i]} for i in order] for scores, order in pairs]


PROFITS = "Quarterly profits rose by a fifth on higher sales."
LABELS_OF_PROFITS = [
    {"label": "business", "score": 0.94971937},
    {"label": "entertainment", "score": 0.02349987},
    {"label": "sports", "score": 0.011117918},
    {"label": "tech", "score": 0.010341699},
    {"label": "politics", "score": 0.005321265},
]
"""The small classifier's answer to it."""
