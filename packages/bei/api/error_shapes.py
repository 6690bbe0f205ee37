"""The shapes of errors, one per family of clients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bei.errors import Error


@dataclass(frozen=True)
class ErrorShape:
    """`render` makes the JSON of an error and its message; `schema` describes it, under `name` in the OpenAPI
    document."""

    name: str
    render: Callable[[Error, str], Mapping[str, Any]]
    schema: Mapping[str, Any]


def _openai(error: Error, message: str) -> Mapping[str, Any]:
    """OpenAI's clients read `error.message` or `message`, Voyage's and Jina's `detail`, so all are there."""
    code = error.code or error.status
    shape = {"message": message, "type": error.kind, "param": error.param, "code": code}
    return {"error": shape, "message": message, "detail": message, "type": error.kind, "code": code}


_STRING, _CODE = {"type": "string"}, {"type": ["integer", "string"]}
OPENAI = ErrorShape(
    "OpenAIError",
    _openai,
    {
        "type": "object",
        "required": ["error", "message", "detail", "type", "code"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": _CODE,
                },
            },
            "message": _STRING,
            "detail": _STRING,
            "type": _STRING,
            "code": _CODE,
        },
    },
)
TEI = ErrorShape(
    "Error",
    lambda error, message: {"error": message, "error_type": error.kind},
    {
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {
            "error": _STRING,
            "error_type": {"enum": ["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]},
        },
    },
)
