"""Malformed requests, and the required results: a 4xx that says why, or a closed connection; never a 200, a 5xx or
silence."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import numpy as np
import orjson

from benchmarks.wire import Ask, Http1, Http2, Lost

Verdict = Literal["refused", "closed", "left", "silence", "accepted", "failed"]
"""Good: refused (4xx), closed by the server, left by us. Bad: silence, accepted (2xx), failed (5xx)."""

_PATIENCE = 2.0  # seconds after which we leave a connection whose bytes are no request
_MEGABYTE = 1_000_000

BODIES: dict[str, bytes] = {
    "half a JSON": b'{"input": "What is',
    "no JSON": b"\x00\x01\x02\x03",
    "not UTF-8": b'{"input": "\xff\xfe", "inputs": "\xff\xfe", "texts": ["\xff"]}',
    "empty": b"",
    "null": b"null",
    "a number": orjson.dumps({"input": 5, "inputs": 5, "texts": 5, "query": 5}),
    "mixed types": orjson.dumps({"input": ["a", 1, None], "inputs": ["a", 1, None], "texts": [1], "query": "a"}),
    "nothing": orjson.dumps({"input": [], "inputs": [], "texts": [], "query": ""}),
    "too many": orjson.dumps({"input": ["a"] * 2049, "inputs": [["a"]] * 2049, "texts": ["a"] * 2049, "query": "a"}),
    "no such prompt": orjson.dumps({"input": "a", "inputs": "a", "texts": ["a"], "query": "a", "prompt_name": "none"}),
    "wrong options": orjson.dumps(
        {"input": "a", "inputs": "a", "texts": ["a"], "query": "a", "truncate": "yes", "dimensions": -1}
    ),
    "deep": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "surrogate": b'{"input": "\\ud800", "inputs": "\\ud800", "texts": ["\\ud800"], "query": "a"}',
}
_ODD = {
    "wrong path": Ask("/v1/embedding", b'{"input": "a"}'),
    "wrong method": Ask("/v1/embeddings", b'{"input": "a"}', method="DELETE"),
    "not a type of JSON": Ask("/v1/embeddings", b"input=a", {"content-type": "multipart/form-data"}),
    "no number of milliseconds": Ask("/v1/embeddings", b'{"input": "a"}', {"request-timeout-ms": "soon"}),
    "a long path": Ask("/" + "a" * 60_000),
    "65 MB": Ask("/v1/embeddings", b" " * 65 * _MEGABYTE),
}
Throw = Callable[[], Awaitable[Verdict]]


def throws(port: int, path: str, http1: Http1, http2: Http2, rng: np.random.Generator) -> dict[str, Throw]:
    """Every kind of garbage, by name; bodies go to `path`."""
    asks = {name: Ask(path, body) for name, body in BODIES.items()} | _ODD
    if path == "/predict_tokens":
        del asks["no such prompt"]  # this model has no prompts, and ignores the field
    found = {
        f"{name}, {way}": _asking(http, ask) for name, ask in asks.items() for way, http in _ways(name, http1, http2)
    }
    good = Ask(path, b'{"input": "a", "inputs": "a", "texts": ["a"], "query": "a"}').http1()
    raw = {
        "random bytes": lambda: rng.bytes(int(rng.integers(1, 4096))),
        "random bytes after an HTTP/2 preface": lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.bytes(1024),
        "half a head": lambda: good[:40],
        "half a body": lambda: good[:-10],
        "no length that is a number": lambda: good.replace(b"content-length: ", b"content-length: x"),
        "chunks that are none": lambda: good.replace(b"content-length: ", b"transfer-encoding: chunked\r\nx: "),
        "a head without end": lambda: b"POST / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000,
        "nothing at all": lambda: b"",
    }
    return found | {name: lambda of=of: _sending(port, of()) for name, of in raw.items()}


def _ways(name: str, http1: Http1, http2: Http2) -> list[tuple[str, Http1 | Http2]]:
    """A head of 60 kB is within HTTP/1.1's bound but above our HTTP/2 client's; large bodies use only one protocol."""
    return [("HTTP/1.1", http1)] if name in ("a long path", "65 MB") else [("HTTP/1.1", http1), ("HTTP/2", http2)]


def _asking(http: Http1 | Http2, ask: Ask) -> Throw:
    async def throw() -> Verdict:
        try:
            reply = await http.ask(ask, 60)
        except Lost:
            return "closed"
        except TimeoutError:
            return "silence"
        return "left" if reply.status in (429, 503) else _verdict(reply.status)

    return throw


async def _sending(port: int, data: bytes) -> Verdict:
    """A server may wait in silence for the rest of an incomplete request; then we leave."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "closed"
    try:
        writer.write(data)
        async with asyncio.timeout(_PATIENCE):
            answer = await reader.read()
    except TimeoutError:
        return "left"
    except OSError:
        return "closed"
    finally:
        writer.transport.abort()
    return _verdict(int(answer[9:12])) if answer.startswith(b"HTTP/1.1 ") else "closed"


def _verdict(status: int) -> Verdict:
    if status < 400:
        return "accepted"
    return "refused" if status < 500 else "failed"
