"""Paths of several dialects: the body tells which one the client speaks, or the model which task is meant."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from bei.api import baseten, cohere, openai, tei
from bei.api.baseten import PredictTokens
from bei.api.call import Call
from bei.api.cohere import CohereRerank, RankedList
from bei.api.openai import EmbeddingList, OpenAIEmbeddings
from bei.api.reply import Result
from bei.api.routes import Dialect, Route, by_another
from bei.api.tei import Embed, EmbedAll, Predict, Rank, Rerank, Similarity
from bei.serving.model import ServedModel
from bei.serving.service import Service


def _ranking(value: Any) -> str:
    return "#cohere" if isinstance(value, dict) and "documents" in value else "#tei"


def _embedding(value: Any) -> str:
    if isinstance(value, dict) and "input" in value:
        return "#openai"
    return "#similarity" if isinstance(value, dict) and isinstance(value.get("inputs"), dict) else "#embed"


AnyRerank = Annotated[Annotated[CohereRerank, Tag("#cohere")] | Annotated[Rerank, Tag("#tei")], Discriminator(_ranking)]
AnyEmbed = Annotated[
    Annotated[OpenAIEmbeddings, Tag("#openai")]
    | Annotated[Similarity, Tag("#similarity")]
    | Annotated[Embed, Tag("#embed")],
    Discriminator(_embedding),
]


async def rerank(model: ServedModel, body: CohereRerank | Rerank, call: Call) -> Result:
    if isinstance(body, CohereRerank):
        return await cohere.rerank(model, body, call)
    return await tei.rerank(model, body, call)


async def embed(model: ServedModel, body: OpenAIEmbeddings | Similarity | Embed, call: Call) -> Result:
    match body:
        case OpenAIEmbeddings():
            return await openai.embeddings(model, body, call)
        case Similarity():
            return await tei.similarity(model, body, call)
        case _:
            return await tei.embed(model, body, call)


_NEWS = ["The striker scored two goals in the second half.", "Quarterly profits jumped 76% to $1.13bn."]
_RERANK = Route(
    "/rerank",
    rerank,
    "Texts ranked by a query: TEI's in the order of the texts, Cohere's best first",
    body=AnyRerank,
    ability="rerank",
    response=list[Rank] | RankedList,
    example={"query": "Striker scores twice in cup final", "texts": _NEWS},
    answer=[{"index": 0, "score": 0.6653267}, {"index": 1, "score": 0.1157033}],
)
_EMBED = Route("/", embed, "", body=AnyEmbed)
_BY_DEFAULT_ROUTE = {
    "/v1/embeddings": _EMBED,
    "/rerank": _RERANK,
    "/predict": tei.PREDICT,
    "/predict_tokens": baseten.PREDICT_TOKENS,
    "/embed_sparse": tei.EMBED_SPARSE,
    "/embed_all": tei.EMBED_ALL,
}


def default_route(service: Service) -> Route:
    """The answer of the model's default route, in the form of the body."""
    return _BY_DEFAULT_ROUTE[service.route]


_DEFAULT = Route(
    "/",
    by_another,
    "The model's own task, as its default route",
    stands_for=default_route,
    body=AnyEmbed | AnyRerank | Predict | PredictTokens | EmbedAll,
    response=EmbeddingList
    | RankedList
    | list[Rank]
    | list[list[float]]
    | list[float]
    | tei.PREDICT.response
    | baseten.PREDICT_TOKENS.response
    | tei.EMBED_SPARSE.response
    | tei.EMBED_ALL.response,
    example={"inputs": ["What is Deep Learning?"], "dimensions": 4},
    answer=[[-0.8924037, -0.3814904, 0.22631614, 0.08283565]],
)
DIALECT = Dialect("shared", (_RERANK, _DEFAULT, _DEFAULT.at("/invocations")))
