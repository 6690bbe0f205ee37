"""A request as a host passes it on, and the values of its headers."""

import hmac
import math
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl

from bei.errors import Invalid, Malformed, Unauthorized, UnsupportedMediaType, short
from bei.settings import ServerSettings

_JSON = ("application/json", "text/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream")
"""Types under which clients send JSON; curl -d calls it a form."""

_MOST_PARAMETERS = 64  # of a query: each takes a microsecond, and a request head has room for 16,000

_ID = re.compile(r"[!-~]{1,128}")


@dataclass
class Call:
    """`headers` have lower-case names. `arrived` is a time.monotonic(). A host may set the `body` last. `query` is the
    part of the target after `?`. `parameters` are parts of the path, once its route is known. `base` names the
    model below whose base URL the path was. `client` is an address, of the access log. `root_path` is the prefix
    before our paths in the URLs of clients. `stream` is the body of a call whose route streams it. A call in the
    background gives way to all that are not. `unknown` are the fields of its body that no family of clients knows."""

    method: str
    path: str
    body: bytes | bytearray = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    query: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    client: str | None = None
    root_path: str = ""
    stream: AsyncIterator[bytes] | None = None
    is_background: bool = False
    unknown: set[str] = field(default_factory=set)

    @cached_property
    def request_id(self) -> str:
        """The client's `x-request-id`, or one of ours if it has none that fits a line."""
        return self.given_id("x-request-id") or f"{random.getrandbits(128):032x}"

    @property
    def model(self) -> str | None:
        """The model of the base URL, or the one that the query names: /info?model=NAME. Raises Malformed."""
        return self.arguments.get("model") if self.base is None else self.base

    @property
    def arguments(self) -> Mapping[str, str]:
        """The parameters of the query, by name. Raises Malformed."""
        try:
            return dict(parse_qsl(self.query, max_num_fields=_MOST_PARAMETERS)) if self.query else {}
        except ValueError:
            raise Malformed(f"the query has more than {_MOST_PARAMETERS} parameters") from None

    @property
    def stated_length(self) -> int:
        """The bytes of the body, as the head states them; 0 where it does not."""
        stated = self.headers.get("content-length", "")
        return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else 0

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises TooLarge, TooSlow or ClientGone."""
        if self.stream is None:
            yield bytes(self.body)
            return
        async for part in self.stream:
            yield part

    def given_id(self, name: str) -> str | None:
        """The client's own id for its request in header `name`. None without one, or for one that does not fit into a
        header and a line of a log: 1 to 128 characters of printable ASCII."""
        given = self.headers.get(name, "")
        return given if _ID.fullmatch(given) else None


def authorize(call: Call, settings: ServerSettings) -> None:
    """Raises Unauthorized unless a key is one of the server's: `Authorization: Bearer K` or `Api-Key K`, or Azure's
    header `api-key: K`. The key is compared with each of them, so the time does not reveal which one it resembles."""
    if not settings.api_key:
        return
    of_azure = f"Api-Key {call.headers.get('api-key', '')}"
    scheme, _, given = call.headers.get("authorization", of_azure).partition(" ")
    key = given.strip().encode()
    found = [hmac.compare_digest(key, known.get_secret_value().encode()) for known in settings.api_key]
    if scheme.lower() not in ("bearer", "api-key") or not any(found):
        raise Unauthorized("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")


def check_content_type(call: Call) -> None:
    """Raises UnsupportedMediaType for a body whose headers say that it is not JSON, or compressed. A missing type is
    accepted."""
    kind = call.headers.get("content-type", _JSON[0])
    if kind not in _JSON:
        kind = kind.partition(";")[0].strip().lower()
    if kind and kind not in _JSON and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"content-type {short(kind)} is not supported; send application/json")
    encoding = call.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"content-encoding {short(encoding)} is not read; send the body as it is")


def deadline(call: Call) -> float:
    """The time.monotonic() after which nobody waits: `request-timeout-ms` after arrival, `request-deadline-ms` since
    the epoch; infinity without either. Raises Invalid."""
    timeout = _milliseconds(call, "request-timeout-ms") / 1000
    epoch = _milliseconds(call, "request-deadline-ms") / 1000
    return min(call.arrived + timeout, time.monotonic() + epoch - time.time())


def _milliseconds(call: Call, name: str) -> float:
    text = call.headers.get(name)
    if text is None:
        return math.inf
    if not text.isascii() or not text.isdigit():
        raise Invalid(f"header `{name}` must be a number of milliseconds, not {short(text)}", param=name)
    return float(text)
