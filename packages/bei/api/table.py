"""The table of all dialects' routes: the route of a call, and the shape of its client's errors."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import orjson

from bei.api import (
    baseten,
    batch_api,
    cohere,
    infinity,
    life,
    llama_cpp,
    nvidia,
    ollama,
    openai,
    openapi,
    operations,
    playground,
    shared,
    tei,
    vllm,
)
from bei.api.call import Call
from bei.api.error_shapes import TEI, ErrorShape
from bei.api.reply import Reply
from bei.api.routes import Dialect, Route
from bei.errors import MethodNotAllowed, NotFound, one_line
from bei.serving.registry import Registry

Methods = Mapping[str, Route]

_PARAMETER = re.compile(r"\{(\w+)\}")


class Table:
    """Literal paths come before templates, and among templates the one with more literal letters. Two routes of one
    path and method are a mistake: ValueError."""

    def __init__(self, dialects: Sequence[Dialect]):
        self.routes = tuple(route for dialect in dialects for route in dialect.routes)
        self._methods = _by_path(self.routes)
        templates = sorted((path for path in self._methods if "{" in path), key=_letters, reverse=True)
        self._templates = [(re.compile(_pattern(path)), path) for path in templates]
        self._errors = {route.path: route.errors or dialect.errors for dialect in dialects for route in dialect.routes}
        self._prefixes = [(prefix, dialect.errors) for dialect in dialects for prefix in dialect.prefixes]

    def route(self, call: Call) -> Route:
        """Raises NotFound or MethodNotAllowed; sets the call's parameters."""
        methods = self._methods.get(call.path) or self._of_template(call)
        if methods is None:
            raise NotFound(f"no such path: {one_line(call.path)}; GET /docs lists them")
        route = methods.get("GET" if call.method == "HEAD" else call.method)
        if route is None:
            raise MethodNotAllowed(call.method, call.path, allowed=tuple(methods))
        return route

    def _of_template(self, call: Call) -> Methods | None:
        for pattern, path in self._templates:
            if found := pattern.fullmatch(call.path):
                call.parameters = found.groupdict()
                return self._methods[path]
        return None

    def has(self, path: str) -> bool:
        return path in self._methods or any(pattern.fullmatch(path) for pattern, _ in self._templates)

    def label(self, path: str) -> str:
        """The path under which a call is counted: the route's own, or `other`, because clients can invent any number of
        paths."""
        if path in self._methods:
            return path
        return next((template for pattern, template in self._templates if pattern.fullmatch(path)), "other")

    def errors(self, path: str) -> ErrorShape:
        """The shape of errors for the clients of a path."""
        label = self.label(path)
        return self._errors.get(label) or next((e for prefix, e in self._prefixes if path.startswith(prefix)), TEI)


def _by_path(routes: Sequence[Route]) -> Mapping[str, Methods]:
    found: dict[str, dict[str, Route]] = {route.path: {} for route in routes}
    for route in routes:
        if found[route.path].setdefault(route.method, route) is not route:
            raise ValueError(f"two routes for {route.method} {route.path}")
    return found


def _letters(template: str) -> int:
    return len(_PARAMETER.sub("", template))


def _pattern(template: str) -> str:
    """A parameter may contain slashes, because a model's name does."""
    literals = map(re.escape, _PARAMETER.split(template)[::2])
    names = [*(f"(?P<{name}>.+)" for name in _PARAMETER.findall(template)), ""]
    return "".join(literal + name for literal, name in zip(literals, names, strict=True))


@cache
def _openapi() -> dict[str, Any]:
    return openapi.document(DIALECTS, TABLE.errors)


async def _document(registry: Registry, body: Any, call: Call) -> Reply:
    found = {**_openapi(), "servers": [{"url": call.root_path or "/"}]}
    return Reply(orjson.dumps(found), headers={"content-type": "application/json"})


DIALECTS = (
    openai.DIALECT,
    batch_api.DIALECT,
    tei.DIALECT,
    baseten.DIALECT,
    cohere.DIALECT,
    vllm.DIALECT,
    infinity.DIALECT,
    ollama.DIALECT,
    nvidia.DIALECT,
    llama_cpp.DIALECT,
    shared.DIALECT,
    operations.DIALECT,
    playground.DIALECT,
    life.DIALECT,
    Dialect("openapi", (Route("/openapi.json", _document, "This document", method="GET"),)),
)
TABLE = Table(DIALECTS)
ROUTES = TABLE.routes
