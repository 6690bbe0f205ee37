"""Attacks by bodies and answers: endless values, clients that leave, answers that nobody reads."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress

from benchmarks.attacks.attack import Attack

_SIZE = 63_000_000  # bytes of a body, just below the limit
_TEXT = "The quick brown fox, jumps over: the lazy dog. " * 640  # 30 KB
_CLIENTS = 4  # at once
_SIP = 512  # bytes that a slow reader takes at once
_PAUSE = 0.1  # seconds between two reads


def _filled(before: bytes, unit: bytes, after: bytes) -> Callable[[], bytes]:
    return lambda: before + unit * (_SIZE // len(unit)) + after


def _of(value: object) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


async def _many(client: Callable, port: int, until: float) -> None:
    async def again() -> None:
        while time.monotonic() < until:
            with suppress(OSError, asyncio.IncompleteReadError):
                await client(port, until)
            await asyncio.sleep(0.01)

    with suppress(TimeoutError):
        async with asyncio.timeout(until - time.monotonic()):
            await asyncio.gather(*(again() for _ in range(_CLIENTS)))


async def _send(port: int, path: str, body: bytes, limit: int = 1 << 16) -> tuple:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


def _answered(path: str, make: Callable[[], bytes]) -> Attack:
    """Sends a body repeatedly, and reads every answer."""

    async def attack(port: int, until: float) -> None:
        body = make()

        async def client(port: int, until: float) -> None:
            reader, writer = await _send(port, path, body)
            await reader.read()
            writer.close()

        await _many(client, port, until)

    return attack


def _left(path: str, make: Callable[[], bytes], seconds: float) -> Attack:
    """Sends a body, and leaves a moment later."""

    async def attack(port: int, until: float) -> None:
        body = make()

        async def client(port: int, until: float) -> None:
            _, writer = await _send(port, path, body)
            await asyncio.sleep(seconds)
            writer.transport.abort()

        await _many(client, port, until)

    return attack


def _unread(path: str, make: Callable[[], bytes]) -> Attack:
    """Reads the answer as slowly as the server allows."""

    async def attack(port: int, until: float) -> None:
        body = make()

        async def client(port: int, until: float) -> None:
            reader, writer = await _send(port, path, body, limit=_SIP)
            while time.monotonic() < until and await reader.read(_SIP):
                await asyncio.sleep(_PAUSE)
            writer.transport.abort()

        await _many(client, port, until)

    return attack


ATTACKS: dict[str, Attack] = {
    "objects": _answered("/embed", _filled(b'{"inputs":[', b"{},", b"{}]}")),
    "lists": _answered("/embed", _filled(b'{"inputs":[', b"[9],", b"[9]]}")),
    "empty lists": _answered("/embed", _filled(b'{"inputs":[', b"[],", b"[]]}")),
    "an unknown field": _answered("/embed", _filled(b'{"inputs":"a","unknown":[', b'{"key":{}},', b"0]}")),
    "letters": _answered("/embed", _filled(b'{"inputs":[', b'"a",', b'"a"]}')),
    "numbers": _answered("/embed", _filled(b'{"inputs":[[', b"1000,", b"1]]}")),
    "token ids": _answered("/embed", _of({"inputs": [list(range(1000, 2000))] * 2000})),
    "small bodies": _answered("/embed", lambda: b'{"inputs":[' + b"{}," * 5400 + b"{}]}"),
    "one text": _answered("/embed", lambda: b'{"inputs":"' + b"\\n" * 30_000_000 + b'"}'),
    "texts, and leaves": _left("/embed", _of({"inputs": [_TEXT] * 2000}), 0.5),
    "other texts, and leaves": _left("/embed", _of({"inputs": [f"{i} {_TEXT}" for i in range(2000)]}), 0.5),
    "token states, unread": _unread("/embed_all", _of({"inputs": [f"{i} {_TEXT[:1000]}" for i in range(250)]})),
    "tokens": _answered("/tokenize", _of({"inputs": [_TEXT] * 200})),
    "an instruction": _answered("/embed", _of({"inputs": ["a"] * 2000, "instruction": "the cat " * 1_000_000})),
}
