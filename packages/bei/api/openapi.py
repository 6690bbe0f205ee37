"""The OpenAPI 3.1 document, from the table of routes."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter

from bei import __version__
from bei.api.error_shapes import ErrorShape
from bei.api.routes import Dialect, Route

_REFERENCES = "#/components/schemas/{model}"
_NO_NAME = re.compile(r"\W+")
_PARAMETER = re.compile(r"\{(\w+)\}")
_ERRORS = {
    "400": "Not JSON, or empty",
    "401": "The API key is missing or wrong",
    "403": "The server allows it to nobody who may have sent it; the message says why",
    "404": "No model, file or batch of that name, or the server was started without a folder for batches",
    "408": "The body did not arrive in time",
    "413": "The body or the batch is too large",
    "415": "The body is not JSON",
    "422": "A field is wrong; the message names it",
    "424": "The route does not fit the model, or the engine failed",
    "429": "Overloaded; try again after Retry-After",
    "503": "Not ready",
    "504": "The request's own deadline passed",
}


def document(dialects: Sequence[Dialect], errors: Callable[[str], ErrorShape]) -> dict[str, Any]:
    """A valid OpenAPI 3.1 document with every body, answer and error of every route. `errors` gives the shape of errors
    by path. A route's tag is its dialect. `x-ability` is the ability that a route needs of a model; /info lists those
    of a model."""
    routes = [route for dialect in dialects for route in dialect.routes]
    tags = {id(route): dialect.name for dialect in dialects for route in dialect.routes}
    typed = [
        (route, kind) for route in routes for kind in (route.body or route.form, route.response) if kind is not None
    ]
    schemas, definitions = TypeAdapter.json_schemas(
        [(i, "validation", TypeAdapter(kind)) for i, (_, kind) in enumerate(typed)], ref_template=_REFERENCES
    )
    by_kind = {(id(route), id(kind)): schemas[(i, "validation")] for i, (route, kind) in enumerate(typed)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        body, response = (by_kind.get((id(route), id(kind))) for kind in (route.body or route.form, route.response))
        operation = _operation(route, errors(route.path).name, body, response)
        paths.setdefault(route.path, {})[route.method.lower()] = {"tags": [tags[id(route)]], **operation}
    shapes = {shape.name: shape.schema for shape in (errors(route.path) for route in routes)}
    components = {**definitions.get("$defs", {}), **shapes}
    return {
        "openapi": "3.1.0",
        "info": {"title": "bei", "version": __version__, "description": "An open embedding engine"},
        "tags": [{"name": dialect.name} for dialect in dialects],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: Route, error: str, body: dict[str, Any] | None, response: dict[str, Any] | None
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{_NO_NAME.sub('_', route.path)}",
        "security": [] if route.public else [{"key": []}, {}],
        "responses": {"200": _success(response, route.answer), **_errors(route, error)},
    }
    if route.ability is not None:
        operation["x-ability"] = route.ability
    if names := _PARAMETER.findall(route.path):
        parameter = {"in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [{"name": name, **parameter} for name in names]
    if body is not None:
        content = {"schema": body, **({} if route.example is None else {"example": route.example})}
        kind = "application/json" if route.form is None else "multipart/form-data"
        operation["requestBody"] = {"required": True, "content": {kind: content}}
    return operation


def _success(response: dict[str, Any] | None, example: Any) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "The answer"}
    if response is not None:
        content = {"schema": response, **({} if example is None else {"example": example})}
        success["content"] = {"application/json": content}
    return success


def _errors(route: Route, name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    statuses = ("404", "503") if route.public else _ERRORS
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}
