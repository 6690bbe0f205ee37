"""The dialect of text-embeddings-inference: embed, embed_all, similarity, tokenize, decode, and the bare path."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Discriminator, Tag
from typing_extensions import TypedDict

from bei.api import openai
from bei.api.bodies import Decode, Embed, EmbedAll, OpenAIEmbeddings, Reading, Similarity, Tokenize
from bei.api.call import Call, deadline
from bei.api.reply import Result
from bei.api.routes import Route
from bei.errors import Empty, WrongTask
from bei.service import Service


class Token(TypedDict):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


async def embed(service: Service, body: Embed, call: Call) -> Result:
    answer = await service.embed(
        body.inputs,
        dimensions=body.dimensions,
        normalize=body.normalize is not False,
        options=body.options(deadline(call)),
    )
    return Result(answer.rows, answer.usage, len(body.inputs))


async def embed_all(service: Service, body: EmbedAll, call: Call) -> Result:
    answer = await service.embed_tokens(body.inputs, options=body.options(deadline(call)))
    return Result(answer.rows, answer.usage, len(body.inputs))


async def similarity(service: Service, body: Similarity, call: Call) -> Result:
    options = (body.parameters or Reading()).options(deadline(call))
    sentences = body.inputs.sentences
    if not sentences:
        raise Empty("`inputs.sentences` cannot be empty")
    answer = await service.similarity(body.inputs.source_sentence, sentences, options=options)
    return Result(answer.rows, answer.usage, len(sentences) + 1)


async def tokenize(service: Service, body: Tokenize, call: Call) -> Result:
    tokens = await service.tokenize(
        body.inputs, add_special_tokens=body.add_special_tokens is not False, prompt_name=body.prompt_name
    )
    return Result([[asdict(token) for token in text] for text in tokens])


async def decode(service: Service, body: Decode, call: Call) -> Result:
    return Result(await service.decode(body.ids, skip_special_tokens=body.skip_special_tokens is not False))


async def default(service: Service, body: OpenAIEmbeddings | Similarity | Embed, call: Call) -> Result:
    """What SageMaker, huggingface_hub and haystack post to; the body says which form is meant."""
    match body:
        case OpenAIEmbeddings():
            return await openai.embeddings(service, body, call)
        case Similarity():
            return await similarity(service, body, call)
        case _:
            return await embed(service, body, call)


def _form(value: Any) -> str:
    if isinstance(value, dict) and "input" in value:
        return "#openai"
    return "#similarity" if isinstance(value, dict) and isinstance(value.get("inputs"), dict) else "#embed"


Default = Annotated[
    Annotated[OpenAIEmbeddings, Tag("#openai")]
    | Annotated[Similarity, Tag("#similarity")]
    | Annotated[Embed, Tag("#embed")],
    Discriminator(_form),
]


def _refuse(path: str, message: str) -> Route:
    """A route of another kind of model: TEI's own words, whatever the body."""

    async def handler(service: Service, body: Any, call: Call) -> Result:
        raise WrongTask(message)

    return Route(path, handler, f"For other models: answers 424 `{message}`")


_TEXTS = ["What is Deep Learning?", "Deep Learning is..."]
_SIMILARITY = {"inputs": {"source_sentence": _TEXTS[0], "sentences": _TEXTS[1:]}}
_DEFAULT = {
    "handler": default,
    "summary": "The model's own task, in the form that the body has",
    "body": Default,
    "response": list[list[float]] | list[float] | openai.EmbeddingList,
    "example": {"inputs": _TEXTS},
}

ROUTES = (
    Route("/embed", embed, "Embeddings", body=Embed, response=list[list[float]], example={"inputs": _TEXTS}),
    Route(
        "/embed_all",
        embed_all,
        "The last hidden state of every token",
        body=EmbedAll,
        response=list[list[list[float]]],
        example={"inputs": _TEXTS},
    ),
    Route(
        "/similarity",
        similarity,
        "Cosines of one sentence to others",
        body=Similarity,
        response=list[float],
        example=_SIMILARITY,
    ),
    Route("/tokenize", tokenize, "Tokens", body=Tokenize, response=list[list[Token]], example={"inputs": _TEXTS}),
    Route("/decode", decode, "Token ids to texts", body=Decode, response=list[str], example={"ids": [7592, 2088]}),
    Route("/", **_DEFAULT),
    Route("/invocations", **_DEFAULT),
    _refuse("/rerank", "model is not a re-ranker model"),
    _refuse("/predict", "Model is not a classifier model"),
    _refuse("/predict_tokens", "Model is not a token classification model"),
    _refuse("/embed_sparse", "Model is not an embedding model with SPLADE pooling"),
)
