"""Routes that load and unload a model: for whoever has a key, or on a server that only this machine reaches."""

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call, deadline
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.errors import Forbidden
from bei.serving.readiness import State
from bei.serving.registry import Registry


class ModelState(TypedDict):
    id: str
    state: State


async def load(registry: Registry, body: None, call: Call) -> Result:
    _check(registry, call)
    service = await registry.load_named(call.parameters["model"], deadline(call))
    return Result({"id": service.name, "state": service.state})


async def unload(registry: Registry, body: None, call: Call) -> Result:
    _check(registry, call)
    service = registry.named(call.parameters["model"])
    await registry.loader.unload(service, deadline(call))
    return Result({"id": service.name, "state": service.state})


def _check(registry: Registry, call: Call) -> None:
    """A call with a key has been checked. Without keys a page in a browser of this machine might have sent it, unless
    it names no origin. Raises Forbidden."""
    if registry.settings.api_key:
        return
    if not registry.is_local:
        raise Forbidden("models are loaded and unloaded behind an API key; start the server with --api-key-file")
    if "origin" in call.headers:
        raise Forbidden("pages may not load and unload models of a server without an API key")


DIALECT = Dialect(
    "life",
    (
        Route("/models/{model}/load", load, "Loads a model, and answers when it is ready", response=ModelState),
        Route(
            "/models/{model}/unload",
            unload,
            "Ends a model after its requests, and answers then; its next request loads it again",
            response=ModelState,
        ),
    ),
)
