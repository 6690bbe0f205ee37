"""OpenAI's dialect: embeddings and the list of models."""

from typing import Literal

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.chunking import Chunking
from bei.api.error_shapes import OPENAI, TEI
from bei.api.inputs import Items
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import TokenUsage, token_usage
from bei.checkpoint.task import Task
from bei.serving.model import ServedModel
from bei.serving.readiness import State
from bei.serving.registry import Registry
from bei.serving.service import Service


class OpenAIEmbeddings(Chunking):
    """OpenAI's fields, and those of every embedding route."""

    input: Items
    input_fields = ("input",)


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class Model(TypedDict):
    """OpenAI's fields, and those of ours that describe a model once it is loaded; `max_model_len` is vLLM's name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: State
    task: Task | None
    dimensions: int | None
    max_model_len: int | None


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


async def embeddings(model: ServedModel, body: OpenAIEmbeddings, call: Call) -> Result:
    form = body.form()
    options = body.options(model, call)
    if body.late_chunking or body.chunks:
        texts = body.texts(body.input, options)
        answer = await model.embed_chunks(texts, body.chunks, **body.finish(), options=options)
    else:
        answer = await model.embed(body.input, **body.finish(), options=options)
    rows = form.written(answer.rows, model)
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    name = model.settings.served_model_name
    value = {"object": "list", "data": data, "model": name, "usage": token_usage(answer.usage)}
    return Result(value, answer.usage, len(body.input))


async def models(registry: Registry, body: None, call: Call) -> Result:
    services = registry.services if call.base is None else (registry.resolve(name=call.base),)
    return Result({"object": "list", "data": [_model(service) for service in services]})


async def model(registry: Registry, body: None, call: Call) -> Result:
    """With one model served, any name matches."""
    return Result(_model(registry.resolve(name=call.parameters["model"])))


def _model(service: Service) -> Model:
    loaded = service.checkpoint
    return {
        "id": service.settings.served_model_name,
        "object": "model",
        "created": 0,
        "owned_by": "bei",
        "state": service.state,
        "task": loaded.task if loaded else None,
        "dimensions": loaded.width if loaded else None,
        "max_model_len": loaded.max_tokens if loaded else None,
    }


_EMBEDDINGS = Route(
    "/v1/embeddings",
    embeddings,
    "Embeddings, as OpenAI's",
    body=OpenAIEmbeddings,
    ability="embed",
    response=EmbeddingList,
    example={"input": "What is Deep Learning?", "dimensions": 4},
    answer={
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [-0.8924037, -0.3814904, 0.22631614, 0.08283565]}],
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
)
_MODELS = Route("/v1/models", models, "The served models", method="GET", response=ModelList)

DIALECT = Dialect(
    "openai",
    (
        *(_EMBEDDINGS, _EMBEDDINGS.at("/embeddings", TEI)),
        *(_EMBEDDINGS.at(path) for path in ("/openai/v1/embeddings", "/openai/deployments/{model}/embeddings")),
        *(_MODELS, _MODELS.at("/models", TEI)),
        Route("/v1/models/{model}", model, "The served model of that name", method="GET", response=Model),
    ),
    errors=OPENAI,
    prefixes=("/v1/", "/openai/"),
)
