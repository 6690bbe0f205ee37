"""Request heads over HTTP/2: their decoding, their checks and their size."""

from collections.abc import Callable, Iterable

from h2.exceptions import ProtocolError
from h2.utilities import HeaderValidationFlags, validate_headers
from hpack import Decoder, HeaderTuple

RequestHead = list[tuple[bytes, bytes]]

_REQUEST = HeaderValidationFlags(is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False)
_LENGTH, _HIDDEN = b"content-length", b"\0"
_HIDE = {_LENGTH: _HIDDEN, _HIDDEN: b""}  # a client that sends our own name for it has its request head refused
_OF_A_FIELD = 32  # bytes that each field adds to its name and value (RFC 9113, §6.5.2)
_COMPARED = b"host"  # with the :authority
_SHORT = 64
_FORBIDDEN = b"\0", b"\r", b"\n"


class RequestHeadDecoder(Decoder):
    """Hides the content length from h2, which would end the connection for a wrong one; `shown` restores it. `pay` is
    called with the size of each request head, also of one that is no call's."""

    def __init__(self, most: int, pay: Callable[[int], None]):
        super().__init__(most)
        self._pay = pay

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        request_head = super().decode(data, raw)
        self._pay(size(request_head))
        return [HeaderTuple(_HIDE.get(name, name), value) for name, value in request_head]


def shown(request_head: RequestHead) -> RequestHead:
    """A request head as the client sent it."""
    return [(_LENGTH if name == _HIDDEN else name, value) for name, value in request_head]


def size(request_head: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a decoded request head. On the wire a field may be a single byte."""
    return sum(_OF_A_FIELD + len(name) + len(value) for name, value in request_head)


def check(request_head: RequestHead) -> None:
    """Raises ProtocolError for a malformed request head (RFC 9113, §8.2 and §8.3)."""
    for _ in validate_headers([(name, _shortened(name, value)) for name, value in request_head], _REQUEST):
        pass


def _shortened(name: bytes, value: bytes) -> bytes:
    """A short value that is valid if and only if the given one is: h2 takes a millisecond to check the bytes of 60
    KB."""
    if len(value) <= _SHORT or name == _COMPARED or name.startswith(b":"):
        return value
    return value[:1] + b"".join(byte for byte in _FORBIDDEN if byte in value) + value[-1:]


def length(request_head: RequestHead) -> int | None:
    """The length of the body according to its request head. Raises ProtocolError or ValueError for one that is no
    number."""
    given = {value for name, value in request_head if name == _LENGTH}
    if len(given) > 1 or not all(value.isdigit() for value in given):
        raise ProtocolError("the content-length is not a number")
    return int(given.pop()) if given else None
