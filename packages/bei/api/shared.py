"""Paths of several dialects: the body tells which one the client speaks, or the model which task is meant."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api import baseten, cohere, openai, tei
from bei.api.baseten import PredictTokens
from bei.api.bodies import validated
from bei.api.call import Call
from bei.api.cohere import CohereRerank, RankedList
from bei.api.error_shapes import OPENAI
from bei.api.fields import Body
from bei.api.openai import EmbeddingList, OpenAIEmbeddings
from bei.api.reply import Reply, Result
from bei.api.routes import Dialect, Route, by_another
from bei.api.tei import Embed, EmbedAll, Predict, Rank, Rerank, Similarity
from bei.errors import Error
from bei.serving.model import ServedModel
from bei.serving.service import Service


def _ranking(value: Any) -> str:
    return "#cohere" if isinstance(value, dict) and "documents" in value else "#tei"


def _ranking_of_v1(value: Any) -> str:
    """Where a body has neither, Cohere's clients are more."""
    return "#tei" if isinstance(value, dict) and "texts" in value and "documents" not in value else "#cohere"


def _embedding(value: Any) -> str:
    if isinstance(value, dict) and "input" in value:
        return "#openai"
    return "#similarity" if isinstance(value, dict) and isinstance(value.get("inputs"), dict) else "#embed"


AnyRerank = Annotated[Annotated[CohereRerank, Tag("#cohere")] | Annotated[Rerank, Tag("#tei")], Discriminator(_ranking)]
RerankOfV1 = Annotated[
    Annotated[CohereRerank, Tag("#cohere")] | Annotated[Rerank, Tag("#tei")], Discriminator(_ranking_of_v1)
]
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


class Vertex(Body):
    """Each instance is a body of the model's default route, or of /rerank where it has a query."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1)]


class Predictions(TypedDict):
    predictions: list[Any]


async def vertex(model: ServedModel, body: Vertex, call: Call) -> Result:
    """An instance that fails, fails the call."""
    model.pipeline.check_size(body.instances)
    results = await asyncio.gather(*(_predicted(model, i, one, call) for i, one in enumerate(body.instances)))
    return Result({"predictions": [result.value for result in results]})


async def _predicted(model: ServedModel, place: int, instance: dict[str, Any], call: Call) -> Result:
    route = _RERANK if "query" in instance and model.has("rerank") else _BY_DEFAULT_ROUTE[model.route]
    body: Body | None = None
    try:
        body = validated(route.adapter, instance, call.unknown) if route.adapter else None
        result = await route.handler(model, body, call)
    except Error as error:
        if body is not None:
            error = body.in_its_words(error)
        raise error if error.param is None else error.called(f"instances.{place}.{error.param}", error.place) from None
    if isinstance(result, Reply):
        raise TypeError(f"{route.path} has no result")
    return result


_VERTEX = Route(
    "/vertex",
    vertex,
    "Several requests in the form of Vertex AI",
    body=Vertex,
    response=Predictions,
    example={"instances": [{"inputs": "What is Deep Learning?", "dimensions": 4}]},
    answer={"predictions": [[[-0.8924037, -0.3814904, 0.22631614, 0.08283565]]]},
)
DIALECT = Dialect(
    "shared",
    (
        *(_RERANK.at(path) for path in ("/rerank", "/reranking")),
        _RERANK.at("/v1/reranking", OPENAI),
        replace(cohere.RERANK, handler=rerank, body=RerankOfV1, response=RankedList | list[Rank], errors=OPENAI),
        *(_DEFAULT.at(path) for path in ("/", "/invocations")),
        _VERTEX,
    ),
)
