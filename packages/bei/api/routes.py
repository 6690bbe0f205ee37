"""A route as data: from one line follow its routing, its 405, and its place in the OpenAPI document and on /docs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from bei.api.call import Call
from bei.api.reply import Reply, Result
from bei.serving.service import Service

Handler = Callable[[Service, Any, Call], Awaitable[Result | Reply]]


async def by_another(service: Service, body: Any, call: Call) -> Result:
    """The handler of a route that `stands_for` others: it is never called."""
    raise NotImplementedError


@dataclass(frozen=True)
class Route:
    """`body` and `response` are types that pydantic can describe; `example` is a body, and `answer` what a small model
    of ours answers to it. `stands_for`, where there is one, says which route answers instead."""

    path: str
    handler: Handler
    summary: str
    method: Literal["GET", "POST"] = "POST"
    body: Any = None
    response: Any = None
    example: Any = None
    answer: Any = None
    stands_for: Callable[[Service], "Route"] | None = None
    public: bool = False
    adapter: TypeAdapter[Any] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.body is not None:
            object.__setattr__(self, "adapter", TypeAdapter(self.body))

    def at(self, path: str) -> Self:
        """The same under another path."""
        return replace(self, path=path)
