"""A route and a dialect as data: routing, 405, errors, the OpenAPI document and /docs follow from them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from bei.api.call import Call
from bei.api.error_shapes import TEI, ErrorShape
from bei.api.reply import Reply, Result
from bei.serving.abilities import Ability
from bei.serving.model import ServedModel
from bei.serving.service import Service

Handler = Callable[[Any, Any, Call], Awaitable[Result | Reply]]
"""`(model, body, call)`; a route `of_server`, or without a body, is about the server: `(registry, body, call)`."""


async def by_another(model: ServedModel, body: Any, call: Call) -> Result:
    """The handler of a route that `stands_for` others; it is never called."""
    raise NotImplementedError


@dataclass(frozen=True)
class Route:
    """`path` may be a template, such as /v1/models/{model}, whose parts become the call's `parameters`. `body` and
    `response` are types that pydantic can describe. `example` is a body, and `answer` a small model's answer to it.
    `ability` is the one that the route needs of a model; None: any model fits. `stands_for`, if set, chooses the route
    that answers instead. `of_server`: its body is for no model. `form`, in place of a body, is the type of a multipart
    form, which the handler reads from the call's stream. `errors` is the dialect's, unless it is set."""

    path: str
    handler: Handler
    summary: str
    method: Literal["GET", "POST", "DELETE"] = "POST"
    body: Any = None
    form: Any = None
    response: Any = None
    example: Any = None
    answer: Any = None
    ability: Ability | None = None
    stands_for: Callable[[Service], "Route"] | None = None
    of_server: bool = False
    public: bool = False
    errors: ErrorShape | None = None
    adapter: TypeAdapter[Any] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.body is not None:
            object.__setattr__(self, "adapter", TypeAdapter(self.body))

    def at(self, path: str, errors: ErrorShape | None = None) -> Self:
        """The same route under another path."""
        return replace(self, path=path, errors=errors or self.errors)


@dataclass(frozen=True)
class Dialect:
    """The routes of one family of clients, and the shape of their errors. An unknown path below `prefixes` counts as
    such a client's, and gets an error in that shape."""

    name: str
    routes: tuple[Route, ...]
    errors: ErrorShape = TEI
    prefixes: tuple[str, ...] = ()
