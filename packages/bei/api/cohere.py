"""Cohere's dialect: rerank, which clients of Jina and infinity also use, and embed in both versions."""

from typing import Any, Literal, NotRequired
from uuid import uuid4

from pydantic import AliasChoices, Field, StrictBool, StrictStr
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.error_shapes import OPENAI
from bei.api.fields import Synonyms
from bei.api.inputs import DocumentTexts, TopN
from bei.api.output import FORMS, EmbeddingType
from bei.api.readings import Pairs, Vectors
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import TokenUsage, token_usage
from bei.serving.answers import Usage
from bei.serving.model import ServedModel


class CohereRerank(Synonyms, Pairs):
    """`top_n` (Voyage's `top_k`) of 0, or unset, means all."""

    query: StrictStr
    documents: DocumentTexts
    top_n: TopN = Field(None, validation_alias=AliasChoices("top_n", "top_k"))
    return_documents: StrictBool | None = None
    input_fields = ("query", "documents")

    @property
    def is_voyage_s(self) -> bool:
        return self.name_of("top_n") == "top_k" or self.truncation is not None


class CohereEmbed(Vectors):
    """`inputs` is Cohere's place for images beside texts, which are not possible here."""

    texts: list[StrictStr]
    inputs: None = None
    embedding_types: list[EmbeddingType] | None = None
    input_fields = ("texts",)


class DocumentText(TypedDict):
    text: str


class Ranked(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[DocumentText]


class RankedText(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[str]


class ApiVersion(TypedDict):
    version: str


class BilledUnits(TypedDict):
    input_tokens: int
    search_units: NotRequired[int]


class Meta(TypedDict):
    api_version: ApiVersion
    billed_units: BilledUnits


class RankedList(TypedDict):
    """`data`: for a body of Voyage's, the results in Voyage's shape."""

    id: str
    object: Literal["rerank"]
    results: list[Ranked]
    data: NotRequired[list[RankedText]]
    meta: Meta
    model: str
    usage: TokenUsage


class ByType(TypedDict, total=False):
    float: list[list[float]]
    base64: list[str]
    int8: list[list[int]]
    uint8: list[list[int]]
    binary: list[list[int]]
    ubinary: list[list[int]]


class Embeddings(TypedDict):
    id: str
    response_type: Literal["embeddings_floats", "embeddings_by_type"]
    embeddings: ByType | list[list[float]]
    texts: list[str]
    meta: Meta


def _version(call: Call) -> Literal["1", "2"]:
    return "2" if call.path.startswith("/v2/") else "1"


def _meta(call: Call, usage: Usage, search_units: int | None = None) -> Meta:
    billed: BilledUnits = {"input_tokens": usage.tokens}
    if search_units is not None:
        billed["search_units"] = search_units
    return {"api_version": {"version": _version(call)}, "billed_units": billed}


async def rerank(model: ServedModel, body: CohereRerank, call: Call) -> Result:
    """Best first. The bare path never returns documents, because its clients disagree on their shape."""
    options = body.options(model, call)
    answer = await model.rerank(body.query, body.documents, scoring=body.scoring(), options=options)
    with_documents = body.return_documents and call.path != "/rerank"
    results = [
        {
            "index": i,
            "relevance_score": answer.rows[i],
            **({"document": {"text": body.documents[i]}} if with_documents else {}),
        }
        for i in answer.order[: body.top_n or None].tolist()
    ]
    value = {
        "id": str(uuid4()),
        "object": "rerank",
        "results": results,
        "meta": _meta(call, answer.usage, search_units=1),
        "model": model.settings.served_model_name,
        "usage": token_usage(answer.usage),
        **({"data": [_with_text(ranked) for ranked in results]} if body.is_voyage_s else {}),
    }
    return Result(value, answer.usage, len(body.documents))


def _with_text(ranked: dict[str, Any]) -> dict[str, Any]:
    return {**ranked, "document": ranked["document"]["text"]} if "document" in ranked else ranked


async def embed(model: ServedModel, body: CohereEmbed, call: Call) -> Result:
    """Version 1 returns a plain list unless types are requested; version 2 returns vectors by type, by default
    floats."""
    types = body.embedding_types or (["float"] if _version(call) == "2" else [])
    body.check_length(*(FORMS[kind].precision for kind in types))
    answer = await model.embed(body.texts, **body.finish(), options=body.options(model, call))
    value = {
        "id": str(uuid4()),
        "response_type": "embeddings_by_type" if types else "embeddings_floats",
        "embeddings": {kind: FORMS[kind].written(answer.rows, model) for kind in types} if types else answer.rows,
        "texts": body.texts,
        "meta": _meta(call, answer.usage),
    }
    return Result(value, answer.usage, len(body.texts))


_NEWS = ["The striker scored two goals in the second half.", "Quarterly profits jumped 76% to $1.13bn."]
_ID = "5587f7bf-52bd-46d3-b114-607b23bc3e3c"


def _rerank_route(path: str, version: str) -> Route:
    return Route(
        path,
        rerank,
        "Documents ranked by a query, as Cohere's and Jina's",
        body=CohereRerank,
        ability="rerank",
        response=RankedList,
        example={
            "query": "Striker scores twice in cup final",
            "documents": _NEWS,
            "top_n": 1,
            "return_documents": True,
        },
        answer={
            "id": _ID,
            "object": "rerank",
            "results": [{"index": 0, "relevance_score": 0.6653267, "document": {"text": _NEWS[0]}}],
            "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": 40, "search_units": 1}},
            "model": "small-reranker",
            "usage": {"prompt_tokens": 40, "total_tokens": 40},
        },
    )


def _embed_route(path: str, version: str) -> Route:
    row = [-0.8924037, -0.3814904, 0.22631614, 0.08283565]
    return Route(
        path,
        embed,
        "Embeddings, as Cohere's",
        body=CohereEmbed,
        ability="embed",
        response=Embeddings,
        example={"texts": ["What is Deep Learning?"], "input_type": "search_query", "output_dimension": 4},
        answer={
            "id": _ID,
            "response_type": "embeddings_floats" if version == "1" else "embeddings_by_type",
            "embeddings": [row] if version == "1" else {"float": [row]},
            "texts": ["What is Deep Learning?"],
            "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": 7}},
        },
    )


RERANK = _rerank_route("/v1/rerank", "1")
"""Its path is llama.cpp's, too."""
DIALECT = Dialect(
    "cohere",
    (
        _rerank_route("/v2/rerank", "2"),
        _embed_route("/v1/embed", "1"),
        _embed_route("/v2/embed", "2"),
    ),
    errors=OPENAI,
    prefixes=("/v2/",),
)
