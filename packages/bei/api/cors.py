"""Cross-origin resource sharing: the pages that may read our answers (fetch.spec.whatwg.org, CORS)."""

import re
from collections.abc import Mapping
from dataclasses import replace

from bei.api.call import Call
from bei.api.reply import Reply
from bei.settings import ServerSettings

_METHODS = "GET, HEAD, POST, DELETE"
_KEPT_SECONDS = 7200  # seconds; no browser keeps the answer to a preflight longer
_FIELD_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_EXPOSED = ", ".join(
    (
        *("retry-after", "x-request-id", "x-baseten-customer-request-id"),
        *("x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-truncated-texts"),
        *("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"),
    )
)


def preflight(call: Call, settings: ServerSettings) -> Reply | None:
    """The answer to a preflight request, which carries no key; None for any other call."""
    asks = call.method == "OPTIONS" and "access-control-request-method" in call.headers
    if not asks or _allowed(call, settings) is None:
        return None
    headers = {"access-control-allow-methods": _METHODS, "access-control-max-age": str(_KEPT_SECONDS)}
    requested = call.headers.get("access-control-request-headers", "")
    if _FIELD_NAMES.fullmatch(requested):
        headers["access-control-allow-headers"] = requested
    return Reply(b"", 204, headers)


def shared(reply: Reply, call: Call, settings: ServerSettings) -> Reply:
    """The reply, with headers that let a page of an allowed origin read it."""
    if not settings.cors_allow_origin:
        return reply
    vary = ", ".join(filter(None, (reply.headers.get("vary"), "origin")))
    return replace(reply, headers={**reply.headers, **_for_pages(call, settings), "vary": vary})


def _for_pages(call: Call, settings: ServerSettings) -> Mapping[str, str]:
    origin = _allowed(call, settings)
    return {} if origin is None else {"access-control-allow-origin": origin, "access-control-expose-headers": _EXPOSED}


def is_strange(call: Call, settings: ServerSettings) -> bool:
    """Whether a page of an origin that is not allowed sent the call."""
    return "origin" in call.headers and _allowed(call, settings) is None


def _allowed(call: Call, settings: ServerSettings) -> str | None:
    """The value of `access-control-allow-origin` for the call's origin; None for a call without an allowed origin."""
    origin = call.headers.get("origin")
    if origin is None or not settings.cors_allow_origin:
        return None
    if "*" in settings.cors_allow_origin:
        return "*"
    return origin if origin.lower() in settings.cors_allow_origin else None
