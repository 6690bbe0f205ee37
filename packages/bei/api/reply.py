"""The reply: status, headers, bytes. It knows JSON, msgpack, base64 and compression, and no server."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from bei.api import written
from bei.api.call import Call
from bei.api.error_shapes import ErrorShape
from bei.errors import Error
from bei.serving.answers import Usage
from bei.work import check, off_loop

_COMPRESS_FROM = 1024  # bytes; below, headers outweigh the gain
_OFF_LOOP_FROM = 65536  # bytes; compressing less is faster than starting a thread
_MESSAGE = 2000  # characters of an error; some quote what the client sent
_ECHOED = ("x-baseten-customer-request-id",)
_READ = 1 << 18  # bytes of a file that are read at once


@dataclass(frozen=True)
class FileContent:
    """A file of `size` bytes, which is read while it is sent."""

    path: Path
    size: int

    def __iter__(self) -> Iterator[bytes]:
        """Its parts. Raises OSError."""
        with self.path.open("rb") as file:
            yield from iter(lambda: file.read(_READ), b"")


@dataclass(frozen=True)
class Reply:
    """`content` is the body, whole, in parts or in a file; header names are lower-case."""

    content: bytes | Sequence[bytes] | FileContent
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> Iterable[bytes]:
        return (self.content,) if isinstance(self.content, bytes) else self.content

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else b"".join(self.content)

    @property
    def size(self) -> int:
        match self.content:
            case bytes():
                return len(self.content)
            case FileContent():
                return self.content.size
            case _:
                return sum(map(len, self.content))

    def with_headers(self, headers: Mapping[str, str]) -> "Reply":
        return Reply(self.content, self.status, {**self.headers, **headers})


@dataclass(frozen=True)
class Result:
    """The value of a handler (dicts, lists, strings, numbers, dataclasses and arrays), its usage, and its number of
    texts."""

    value: Any
    usage: Usage | None = None
    texts: int = 0


async def render(result: Result, call: Call, device: str, writers: ThreadPoolExecutor) -> Reply:
    """Renders msgpack if the client's first accepted type is msgpack, otherwise JSON."""
    headers = _compute_headers(result.usage, device) if result.usage else {}
    accepted = [part.partition(";")[0].strip() for part in call.headers.get("accept", "").split(",")]
    packed = accepted[0] in ("application/msgpack", "application/x-msgpack")
    writing = written.MSGPACK if packed else written.JSON
    headers = {**headers, "content-type": "application/msgpack" if packed else "application/json"}
    if written.is_short(result.value):
        return Reply(writing.whole(result.value), headers=headers)
    return Reply(await off_loop(writers, lambda: writing.parts(result.value)), headers=headers)


def render_error(error: Error, shape: ErrorShape) -> Reply:
    body = orjson.dumps(shape.render(error, error.message[:_MESSAGE]))
    return Reply(body, error.status, {**error.headers, "content-type": "application/json"})


async def finish(reply: Reply, call: Call, writers: ThreadPoolExecutor) -> Reply:
    """Adds the request ids, and compresses the body, unless it is a file, if the client asks for it."""
    headers = {"x-request-id": call.request_id}
    headers |= {name: given for name in _ECHOED if (given := call.given_id(name)) is not None}
    size, whole = reply.size, not isinstance(reply.content, FileContent)
    encoding = _encoding(call.headers.get("accept-encoding", "")) if whole and size >= _COMPRESS_FROM else None
    if encoding is None:
        return reply.with_headers(headers)

    def compress() -> list[bytes]:
        return _compressed(reply.parts, _COMPRESSORS[encoding]())

    parts = await off_loop(writers, compress) if size >= _OFF_LOOP_FROM else compress()
    headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    return Reply(parts, reply.status, reply.headers).with_headers(headers)


_COMPRESSORS: dict[str, Callable[[], Any]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    "gzip": lambda: zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS),
}


def _compressed(parts: Iterable[bytes], compressor: Any) -> list[bytes]:
    made = []
    for part in parts:
        check()
        made.append(compressor.compress(part))
    return [*filter(None, made), compressor.flush()]


def _encoding(accept: str) -> str | None:
    """The first of our codings, best first, that Accept-Encoding names without q=0 (RFC 9110, §12.5.3); `*` counts as
    none."""
    wanted = {}
    for part in accept.lower().split(","):
        name, _, parameters = part.partition(";")
        wanted[name.strip()] = parameters.replace(" ", "").removeprefix("q=") or "1"
    return next((name for name in _COMPRESSORS if wanted.get(name, "0").strip("0.") != ""), None)


def _compute_headers(usage: Usage, device: str) -> dict[str, str]:
    """Headers with TEI's names, times in whole milliseconds; and the number of texts that were cut, where one was."""
    times = {
        "x-compute-time": usage.inference,
        "x-total-time": usage.total,
        "x-tokenization-time": usage.tokenization,
        "x-queue-time": usage.queue,
        "x-inference-time": usage.inference,
    }
    counts = {"x-compute-characters": str(usage.characters), "x-compute-tokens": str(usage.tokens)}
    if usage.truncated_texts:
        counts["x-truncated-texts"] = str(usage.truncated_texts)
    return {"x-compute-type": device, **counts, **{name: str(round(1000 * s)) for name, s in times.items()}}
