"""Writes routes.md, the reference of routes, from the OpenAPI document: `make docs`. tests/test_docs.py compares
them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bei.api import openapi
from bei.api.table import DIALECTS, TABLE

FILE = Path(__file__).with_suffix(".md")
HEAD = """<!-- Written by routes.py: `make docs`. -->
# Routes
Every route with its fields and an example, from the OpenAPI document of a server (`/openapi.json`). [HTTP
reference](http.md) says what they have in common: errors, headers, limits, and the fields that many routes take.
"""
_LONG = 300  # characters of an example's answer


def table() -> str:
    document = openapi.document(DIALECTS, TABLE.errors)
    schemas = document["components"]["schemas"]
    parts = [HEAD]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += section(method.upper(), path, operation, schemas)
    return "\n".join(parts) + "\n"


def section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {method} {path}"
    yield f"{operation['summary'].rstrip('.')}."
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is not None:
        yield from fields(content["schema"], schemas)
        yield from block(content.get("example"))
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {})
    yield from block(answer.get("example"))


def fields(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """A table of the fields of a body, or one for each kind that its fields tell apart; nothing for other bodies."""
    schema = resolved(schema, schemas)
    for one in schema.get("oneOf", ()):
        needed = resolved(one, schemas).get("required", ())
        yield f"\nA body with {' and '.join(f'`{name}`' for name in needed)}:"
        yield from fields(one, schemas)
    properties = schema.get("properties")
    if not properties:
        return
    yield "\n| field | type | |\n|---|---|---|"
    needed = schema.get("required", ())
    for name, of in properties.items():
        yield f"| `{name}` | {kind(of, schemas)} | {'needed' if name in needed else ''} |"


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def kind(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The type of a field in words."""
    schema = resolved(schema, schemas)
    if "anyOf" in schema:
        kinds = dict.fromkeys(kind(of, schemas) for of in schema["anyOf"] if of.get("type") != "null")
        return ", or ".join(kinds)
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}), schemas)}"
    return str(schema.get("type", "any"))


def block(example: Any) -> Iterator[str]:
    """An example as JSON, cut where it is long."""
    if example is not None:
        text = json.dumps(example, ensure_ascii=False)
        yield f"\n```json\n{text if len(text) <= _LONG else text[:_LONG] + ' ...'}\n```"


if __name__ == "__main__":
    FILE.write_text(table())
