"""What a host hands over: one request, whoever carried it; and what its headers ask for."""

import hmac
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from uuid import uuid4

from bei.errors import Invalid, Unauthorized, UnsupportedMediaType
from bei.settings import Settings

_JSON = ("application/json", "text/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream")
"""Types under which clients send JSON; curl -d says it is a form."""

_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True)
class Call:
    """`headers` have lower-case names; `arrived` is a time.monotonic()."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)

    @cached_property
    def request_id(self) -> str:
        """The client's `x-request-id`, or one of ours where it has none that fits a line."""
        given = self.headers.get("x-request-id", "")
        return given if given and _ID.fullmatch(given) else uuid4().hex


def authorize(call: Call, settings: Settings) -> None:
    """Raises Unauthorized unless the key is the server's: `Authorization: Bearer K` or `Api-Key K`."""
    if settings.api_key is None:
        return
    scheme, _, key = call.headers.get("authorization", "").partition(" ")
    wanted = settings.api_key.get_secret_value().encode()
    if scheme.lower() not in ("bearer", "api-key") or not hmac.compare_digest(key.strip().encode(), wanted):
        raise Unauthorized("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")


def check_content_type(call: Call) -> None:
    """Raises UnsupportedMediaType for a body that says it is not JSON. Saying nothing is fine."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in _JSON and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"content-type {kind!r} is not supported; send application/json")


def deadline(call: Call) -> float:
    """The time.monotonic() past which nobody waits: `request-timeout-ms` from arrival, `request-deadline-ms` since
    the epoch; infinity without either. Raises Invalid."""
    timeout = _milliseconds(call, "request-timeout-ms") / 1000
    epoch = _milliseconds(call, "request-deadline-ms") / 1000
    return min(call.arrived + timeout, time.monotonic() + epoch - time.time())


def _milliseconds(call: Call, name: str) -> float:
    text = call.headers.get(name)
    if text is None:
        return math.inf
    if not text.isascii() or not text.isdigit():
        raise Invalid(f"header `{name}` must be a number of milliseconds, not {text!r}", param=name)
    return float(text)
