"""What goes back: status, headers, bytes. Knows JSON, msgpack, base64 and compression; knows no server."""

import asyncio
import gzip
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
import ormsgpack
import zstandard

from bei.api.call import Call
from bei.errors import Error
from bei.service import Usage

_COMPRESS_FROM = 1024  # bytes; below, headers outweigh the gain
_PIECE = 64  # arrays, about 0.7 ms of 384 numbers each
_OFF_LOOP_FROM = 65536  # bytes; compressing less is quicker than a thread
_MESSAGE = 2000  # characters of an error; some quote what the client sent
_ECHOED = ("x-baseten-customer-request-id",)


@dataclass(frozen=True)
class Reply:
    """`body` is what is sent; header names are lower-case."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a handler returns: a value of dicts, lists, strings, numbers and float32 arrays, and what it cost."""

    value: Any
    usage: Usage | None = None
    texts: int = 0


def vector(row: np.ndarray, encoding: Literal["float", "base64"]) -> np.ndarray | str:
    """base64 is of little-endian float32, as OpenAI's clients read it."""
    return b64encode(row.astype("<f4", copy=False).tobytes()).decode() if encoding == "base64" else row


async def render(result: Result, call: Call, device: str) -> Reply:
    """As msgpack where the client asks for it and not for JSON first, else as JSON."""
    headers = _compute_headers(result.usage, device) if result.usage else {}
    accepted = [part.partition(";")[0].strip() for part in call.headers.get("accept", "").split(",")]
    if accepted[0] in ("application/msgpack", "application/x-msgpack"):
        body = ormsgpack.packb(result.value, default=_plain, option=ormsgpack.OPT_SERIALIZE_NUMPY)
        return Reply(body, headers={**headers, "content-type": "application/msgpack"})
    value = result.value
    if result.texts > _PIECE:
        value = list(value) if isinstance(value, np.ndarray) else value
        await _write_arrays(value)
    body = orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(body, headers={**headers, "content-type": "application/json"})


def render_error(error: Error, path: str) -> Reply:
    """OpenAI's clients read `error.message` or `message`, so /v1 and /v2 carry both; the rest is TEI's shape."""
    message = error.message[:_MESSAGE]
    if path.startswith(("/v1/", "/v2/")):
        shape = {"message": message, "type": error.kind, "param": error.param, "code": error.status}
        value: dict[str, Any] = {"error": shape, "message": message, "type": error.kind, "code": error.status}
    else:
        value = {"error": message, "error_type": error.kind}
    body = orjson.dumps(value, default=str)
    return Reply(body, error.status, {**error.headers, "content-type": "application/json"})


async def finish(reply: Reply, call: Call) -> Reply:
    """Request ids echoed, and the body compressed where the client asked for it."""
    headers = {**reply.headers, "x-request-id": call.request_id}
    headers |= {name: given for name in _ECHOED if (given := call.given_id(name)) is not None}
    encoding = _encoding(call.headers.get("accept-encoding", "")) if len(reply.body) >= _COMPRESS_FROM else None
    if encoding is None:
        return Reply(reply.body, reply.status, headers)
    compress = _COMPRESSORS[encoding]
    large = len(reply.body) >= _OFF_LOOP_FROM
    body = await asyncio.to_thread(compress, reply.body) if large else compress(reply.body)
    return Reply(body, reply.status, {**headers, "content-encoding": encoding, "vary": "accept-encoding"})


_COMPRESSORS = {
    "zstd": lambda body: zstandard.ZstdCompressor(level=1).compress(body),
    "gzip": lambda body: gzip.compress(body, compresslevel=1, mtime=0),
}


def _encoding(accept: str) -> str | None:
    """The first of ours, best first, that Accept-Encoding names without q=0 (RFC 9110, §12.5.3); `*` is no wish."""
    wanted = {}
    for part in accept.lower().split(","):
        name, _, parameters = part.partition(";")
        wanted[name.strip()] = parameters.replace(" ", "").removeprefix("q=") or "1"
    return next((name for name in _COMPRESSORS if wanted.get(name, "0").strip("0.") != ""), None)


def _compute_headers(usage: Usage, device: str) -> dict[str, str]:
    """TEI's names; times in whole milliseconds."""
    times = {
        "x-compute-time": usage.inference,
        "x-total-time": usage.total,
        "x-tokenization-time": usage.tokenization,
        "x-queue-time": usage.queue,
        "x-inference-time": usage.inference,
    }
    counts = {"x-compute-characters": str(usage.characters), "x-compute-tokens": str(usage.tokens)}
    return {"x-compute-type": device, **counts, **{name: str(round(1000 * s)) for name, s in times.items()}}


async def _write_arrays(value: Any) -> None:
    """Replace the arrays of a large answer by their JSON, some at a time: others have the loop in between."""
    for count, (holder, key, array) in enumerate(_arrays(value), 1):
        holder[key] = orjson.Fragment(orjson.dumps(array, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY))
        if count % _PIECE == 0:
            await asyncio.sleep(0)


def _arrays(value: Any) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Each array within dicts and lists, with what holds it and under which key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if isinstance(item, np.ndarray):
            yield value, key, item
        else:
            yield from _arrays(item)


def _plain(value: Any) -> Any:
    """Arrays of a layout that the writers do not take as they are."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} cannot be sent")
