"""Ollama's dialect: embeddings of both generations, and the lists of models."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field, StrictInt, StrictStr
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei import __version__
from bei.api.call import Call
from bei.api.error_shapes import ErrorShape
from bei.api.fields import Part, Synonyms
from bei.api.inputs import Texts
from bei.api.readings import Vectors
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.checkpoint.load import Checkpoint
from bei.serving.answers import Options, Usage
from bei.serving.model import ServedModel
from bei.serving.readiness import State
from bei.serving.registry import Registry
from bei.serving.service import Service

Name = Annotated[StrictStr | None, AfterValidator(lambda name: name and name.removesuffix(":latest"))]
"""Ollama's clients may add the tag of the newest version."""


class RunOptions(Part):
    """`num_ctx` is the room for a text, in tokens. The other options of Ollama concern the generation of text."""

    num_ctx: Annotated[StrictInt, Field(ge=0)] | None = None


class _Embedded(Vectors):
    """`keep_alive` is accepted: the server's own settings say how long a model stays loaded."""

    model: Name = None
    run_options: RunOptions | None = Field(None, validation_alias=AliasChoices("options"))

    def options(self, model: ServedModel, call: Call) -> Options:
        options = super().options(model, call)
        room = self.run_options and self.run_options.num_ctx
        return options.within(room) if room else options

    def name_of(self, field: str) -> str:
        if field == "truncate_prompt_tokens" and self.truncate_prompt_tokens is None:
            return "options.num_ctx"
        return super().name_of(field)


class Embed(_Embedded):
    input: Texts
    input_fields = ("input",)


class Embeddings(_Embedded):
    prompt: StrictStr
    input_fields = ("prompt",)


class Show(Synonyms):
    model: Name = Field(None, validation_alias=AliasChoices("model", "name"))


class Embedded(TypedDict):
    """Durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OneEmbedded(TypedDict):
    embedding: list[float]


class Details(TypedDict):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Listed(TypedDict):
    """Ollama's fields, and those of ours: the state, and once the checkpoint is known the width of its vectors and the
    limit of a text, by the name that Ollama has for it elsewhere."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]
    state: State
    dimensions: int | None
    context_length: int | None


class Running(Listed):
    expires_at: str
    size_vram: int


class List(TypedDict):
    models: list[Listed]


class RunningList(TypedDict):
    models: list[Running]


class Shown(TypedDict):
    modelfile: str
    parameters: str
    template: str
    modified_at: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]


class Version(TypedDict):
    version: str


async def embed(model: ServedModel, body: Embed, call: Call) -> Result:
    answer = await model.embed(body.input, **body.finish(), options=body.options(model, call))
    name = model.settings.served_model_name
    value = {"model": name, "embeddings": answer.rows, **_costs(answer.usage)}
    return Result(value, answer.usage, len(body.input))


async def embeddings(model: ServedModel, body: Embeddings, call: Call) -> Result:
    """As it is, unless the client wants length 1."""
    answer = await model.embed([body.prompt], **body.finish(normalize=False), options=body.options(model, call))
    return Result({"embedding": answer.rows[0]}, answer.usage, 1)


async def show(model: ServedModel, body: Show, call: Call) -> Result:
    checkpoint = model.checkpoint
    return Result(
        {
            "modelfile": f"# {checkpoint.name}",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "modified_at": _EVER,
            "details": _details(checkpoint),
            "model_info": {
                "general.architecture": "bei",
                "general.basename": checkpoint.name,
                "bei.context_length": checkpoint.max_tokens,
                "bei.embedding_length": checkpoint.width,
                "bei.block_count": len(checkpoint.spec.layers),
            },
            "capabilities": _capabilities(checkpoint),
        }
    )


async def tags(registry: Registry, body: None, call: Call) -> Result:
    return Result({"models": [_listed(service) for service in registry.services]})


async def running(registry: Registry, body: None, call: Call) -> Result:
    return Result({"models": list(_running(registry.services))})


async def version(registry: Registry, body: None, call: Call) -> Result:
    return Result({"version": __version__})


_EVER = "1970-01-01T00:00:00Z"
_ALWAYS = "9999-12-31T23:59:59Z"


def _costs(usage: Usage) -> dict[str, int]:
    return {
        "total_duration": round(1e9 * usage.total),
        "load_duration": 0,
        "prompt_eval_count": usage.tokens,
    }


def _details(checkpoint: Checkpoint | None) -> Details:
    task, dtype = (checkpoint.task, checkpoint.dtype) if checkpoint else ("", "")
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": task,
        "families": [task],
        "parameter_size": "",
        "quantization_level": dtype,
    }


def _capabilities(checkpoint: Checkpoint | None) -> list[str]:
    return ["embedding"] if checkpoint and checkpoint.task == "embedding" else []


def _listed(service: Service) -> Listed:
    checkpoint, name = service.checkpoint, service.settings.served_model_name
    return {
        "name": name,
        "model": name,
        "modified_at": _EVER,
        "size": service.stored_bytes,
        "digest": (checkpoint and checkpoint.revision) or "",
        "details": _details(checkpoint),
        "capabilities": _capabilities(checkpoint),
        "state": service.state,
        "dimensions": checkpoint.width if checkpoint else None,
        "context_length": checkpoint.max_tokens if checkpoint else None,
    }


def _running(services: Iterable[Service]) -> Iterable[Running]:
    for service in services:
        if service.checkpoint is not None and service.state == "ready":
            yield {
                **_listed(service),
                "size": service.memory(),
                "size_vram": service.device_memory(),
                "expires_at": _expires_at(service),
            }


def _expires_at(service: Service) -> str:
    """When the model is unloaded if no request comes until then."""
    seconds = service.settings.idle_unload
    if seconds is None:
        return _ALWAYS
    idle = time.monotonic() - service.leases.last_use
    return (datetime.now(UTC) + timedelta(seconds=max(0.0, seconds - idle))).isoformat(timespec="milliseconds")


_ERRORS = ErrorShape(
    "OllamaError",
    lambda error, message: {"error": message},
    {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
)
DIALECT = Dialect(
    "ollama",
    (
        Route(
            "/api/embed",
            embed,
            "Embeddings, as Ollama's",
            body=Embed,
            ability="embed",
            response=Embedded,
            example={"input": ["What is Deep Learning?"], "dimensions": 4},
            answer={
                "model": "sentence-transformers/all-MiniLM-L6-v2",
                "embeddings": [[-0.8924037, -0.3814904, 0.22631614, 0.08283565]],
                "total_duration": 2180000,
                "load_duration": 0,
                "prompt_eval_count": 7,
            },
        ),
        Route(
            "/api/embeddings",
            embeddings,
            "One embedding, not of length 1, as Ollama's older one",
            body=Embeddings,
            ability="embed",
            response=OneEmbedded,
            example={"prompt": "What is Deep Learning?", "dimensions": 4, "normalize": True},
            answer={"embedding": [-0.8924037, -0.3814904, 0.22631614, 0.08283565]},
        ),
        Route("/api/show", show, "A served model, as Ollama's", body=Show, response=Shown, example={"model": "any"}),
        Route("/api/tags", tags, "The served models, as Ollama's", method="GET", response=List),
        Route("/api/ps", running, "The models that are ready, as Ollama's", method="GET", response=RunningList),
        Route("/api/version", version, "The version, as Ollama's", method="GET", response=Version),
    ),
    errors=_ERRORS,
    prefixes=("/api/",),
)
