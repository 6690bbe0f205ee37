"""Reads the body of a request."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bei.api import pieces
from bei.api.pieces import Bounds
from bei.errors import Invalid, Malformed
from bei.settings import LimitSettings
from bei.work import off_loop

B = TypeVar("B")

_UNCOUNTED = 1 << 14  # bytes; no JSON of this size takes more than 3 ms
_LARGE = 1 << 18
_NODES = 16  # strings, lists and objects per text: room for one with a title, an address and more
_OWN_NODES = 1024  # and those beside the texts


async def read(
    adapter: TypeAdapter[B],
    raw: bytes | bytearray,
    settings: LimitSettings,
    readers: ThreadPoolExecutor,
    admit: Callable[[int], None] = lambda size: None,
    unknown: set[str] | None = None,
) -> B:
    """Parses a body of any size. A thread reads a large body in pieces, few bodies at a time. Also raises TooLarge,
    before any value is made, for a body with more values than the settings allow; and the errors of `admit`, which is
    called with the number of bytes of the values beside the body's own. Names of fields that no family knows are added
    to `unknown`."""
    if len(raw) <= _UNCOUNTED:
        return parse(adapter, raw, unknown)
    bounds = Bounds(_NODES * settings.max_client_batch_size + _OWN_NODES, settings.max_queue_tokens)
    if len(raw) <= _LARGE:
        pieces.check(raw, bounds)
        return parse(adapter, raw, unknown)
    return await off_loop(readers, lambda: validated(adapter, pieces.read(raw, bounds, admit), unknown))


def validated(adapter: TypeAdapter[B], value: Any, unknown: set[str] | None = None) -> B:
    """Raises Invalid, with the name of the field."""
    try:
        return adapter.validate_python(value, context=unknown)
    except ValidationError as exc:
        raise _plain_words(exc) from None


def parse(adapter: TypeAdapter[B], raw: bytes | bytearray, unknown: set[str] | None = None) -> B:
    """Raises Malformed for invalid JSON, and Invalid, with the name of the field, for JSON of the wrong shape."""
    try:
        return adapter.validate_json(raw, context=unknown)
    except ValidationError as exc:
        raise _plain_words(exc, raw) from None


def _plain_words(error: ValidationError, raw: bytes | bytearray = b"") -> Malformed | Invalid:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        try:
            raw.decode()
        except UnicodeDecodeError:
            return Invalid("the body is not valid UTF-8")
        return Malformed(f"malformed JSON: {first['ctx']['error']}")
    fields = [str(part) for part in first["loc"] if not _is_tag(part)]
    if not fields:
        return Invalid("the body must be a JSON object")
    name, message = ".".join(fields), first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "model_type":
        message = "should be an object"
    if first["type"] == "missing":
        return Invalid(f"`{name}` is required", param=name)
    return Invalid(f"`{name}` {message[0].lower()}{message[1:]}", param=name)


def _is_tag(part: str | int) -> bool:
    """Whether a part is the name that a union gives to its member, and no field of the body."""
    return isinstance(part, str) and part.startswith("#")
