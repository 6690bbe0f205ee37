"""Every error a caller can see, in one tree; `bei.api.reply` alone turns one into bytes.

* Error                     500  Backend
  - SetupError              -            a checkpoint, setting or machine that cannot serve: one line, before ready
  - Malformed               400  Validation    not JSON
  - Empty                   400  Empty
  - Unauthorized            401  Validation
  - Forbidden               403  Validation    the server allows it to nobody who may have sent it
  - NotFound                404  Validation
    - ModelNotFound         404  Validation    several models are served, and none has that name
  - MethodNotAllowed        405  Validation
  - TooSlow                 408  Validation    a head or body that does not arrive
  - TooLarge                413  Validation    body or batch
  - UnsupportedMediaType    415  Validation
  - Misdirected             421  Validation    a host that is not this server's
  - Invalid                 422  Validation    a field is wrong; `param` names it
  - Untokenizable           422  Tokenizer
  - WrongTask               424  Backend       the route does not fit the loaded model
  - EngineFailed            424  Backend
    - EngineDied            424  Backend       the engine's process ended while it ran this
  - Overloaded              429  Overloaded    with Retry-After
  - RequestHeadTooLarge     431  Validation    of a request: bytes, or number of headers
  - ClientGone              499  Overloaded    logged, never sent
  - Unimplemented           501  Validation    a part of HTTP that is not served
  - NotReady                503  Unhealthy
    - Ended               503  Unhealthy     the model or the server ended before it answered this
  - Expired                 504  Overloaded    the request's own deadline passed
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import Any, ClassVar, Self

_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring = 2, 80
_SHORT = 120


def short(value: Any) -> str:
    """A value as an error quotes it: short, and without characters that control a terminal."""
    return _REPR.repr(value)[:_SHORT]


def one_line(text: object, most: int = _SHORT) -> str:
    """The text of a file, a library or the network as a message shows it: one printable line of at most `most`
    characters."""
    words = printable(" ".join(str(text)[: 8 * most].split()))
    return words if len(words) <= most else f"{words[: most - 3]}..."


def why(error: BaseException) -> str:
    """The reason of an error of the system or of a library, in its own words."""
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__


def address(host: str, port: int) -> str:
    """A network address as a URL writes it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def refusing() -> Iterator[None]:
    """Turns a lack of memory, disk space or permissions during the start into a SetupError."""
    try:
        yield
    except MemoryError:
        raise SetupError("out of memory; give the process more of it, or take a smaller model or precision") from None
    except OSError as exc:
        raise SetupError(f"{exc.filename}: {why(exc)}" if exc.filename else why(exc)) from None


class library_errors:
    """Turns the bare exceptions of a native library, and its panics, into errors of a `kind`. A plain context manager,
    for speed: each request enters one."""

    __slots__ = ("_kind", "_what")

    def __init__(self, what: str, kind: type["Error"]):
        self._what, self._kind = what, kind

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        if exc is not None and not isinstance(exc, Error | KeyboardInterrupt | SystemExit):
            raise self._kind(f"{self._what}: {one_line(exc)}") from None


def printable(text: str) -> str:
    """Text with every character that ends or hides a line, or controls a terminal, escaped as in Python's literals."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Error(Exception):
    """`status` and `kind` go to the client with the message. `param` names the wrong field. `place` is the index of the
    wrong input among those of the call; a caller that knows the input puts it into `item`. For a pair, `part` is the
    index of the wrong text."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "Backend"
    code: ClassVar[str | None] = None
    """OpenAI's word for the error, where it has one."""

    def __init__(self, message: str, *, param: str | None = None, place: int | None = None, part: int | None = None):
        self.message = message if place is None else f"{message} (input {place})"
        super().__init__(self.message)
        self.param, self.place, self.part, self.item = param, place, part, None
        self._bare = message

    def called(self, name: str, place: int | None) -> Self:
        """The same error with the client's name for the field, and the index of the input in that field."""
        return type(self)(self._bare.replace(f"`{self.param}`", f"`{name}`"), param=name, place=place)

    @property
    def headers(self) -> dict[str, str]:
        return {}


class SetupError(Error):
    """Raised before the server is ready; the command line prints the message and exits with status 2."""


class Malformed(Error):
    status, kind = 400, "Validation"


class Empty(Error):
    status, kind = 400, "Empty"


class Unauthorized(Error):
    status, kind = 401, "Validation"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(Error):
    status, kind = 403, "Validation"


class NotFound(Error):
    status, kind = 404, "Validation"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(Error):
    status, kind = 405, "Validation"

    def __init__(self, method: str, path: str, *, allowed: tuple[str, ...]):
        super().__init__(f"{one_line(method, 20)} is not answered on {one_line(path)}; use {' or '.join(allowed)}")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": ", ".join(self.allowed)}


class TooSlow(Error):
    status, kind = 408, "Validation"


class TooLarge(Error):
    status, kind = 413, "Validation"


class UnsupportedMediaType(Error):
    status, kind = 415, "Validation"


class Misdirected(Error):
    status, kind = 421, "Validation"


class Invalid(Error):
    status, kind = 422, "Validation"


class Untokenizable(Error):
    status, kind = 422, "Tokenizer"


class WrongTask(Error):
    status = 424


class EngineFailed(Error):
    status = 424


class EngineDied(EngineFailed):
    pass


class Overloaded(Error):
    """`retry_after`: seconds in which the queue will have run."""

    status, kind = 429, "Overloaded"

    def __init__(self, message: str = "Model is overloaded", *, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class RequestHeadTooLarge(Error):
    status, kind = 431, "Validation"


class ClientGone(Error):
    status, kind = 499, "Overloaded"


class Unimplemented(Error):
    status, kind = 501, "Validation"


class NotReady(Error):
    """`retry_after`: seconds after which another request may be answered."""

    status, kind = 503, "Unhealthy"
    retry_after: float = 1.0

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


ENDING = "the model was unloaded, or the server stops"


class Ended(NotReady):
    """Its service knows which of both it was (Service.ended)."""


class Expired(Error):
    status, kind = 504, "Overloaded"
