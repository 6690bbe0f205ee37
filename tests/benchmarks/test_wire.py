"""A client that tells a whole answer from half of one, and gives up in time."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from benchmarks.wire import Ask, Http1, Http2, Lost
from tests.support.waiting import until

LIMIT = 60.0  # seconds of any wait of these tests
OK = b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 2\r\n\r\nhi"


def against(answer: bytes, work: Callable[[int], Coroutine[Any, Any, Any]], *, close: bool = True) -> Any:
    """The result of `work` on the port of a server that answers everything with these bytes."""
    conversations = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(asyncio.current_task())
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                writer.write(answer)
                if close:
                    break
            writer.close()
            await writer.wait_closed()

    async def run() -> Any:
        async with asyncio.timeout(LIMIT), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            try:
                return await work(server.sockets[0].getsockname()[1])
            finally:
                await asyncio.gather(*conversations)

    return asyncio.run(run())


async def once(port: int, limit: float = LIMIT) -> bytes:
    http = Http1(port)
    try:
        return bytes((await http.ask(Ask("/", b"{}"), limit)).body)
    finally:
        http.close()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"hi"),
        (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nno", b"no"),
        (b"HTTP/1.1 100 \r\n\r\n" + OK, b"hi"),
    ],
)
def test_whole_answers(answer, body):
    assert against(answer, once) == body


@pytest.mark.parametrize("answer", [b"", OK[:-1], OK[:20], b"nonsense\r\n\r\n"])
def test_less_is_lost(answer):
    with pytest.raises(Lost):
        against(answer, once)


def test_silence_ends_at_the_limit():
    with pytest.raises(TimeoutError):
        against(OK[:-1], lambda port: once(port, 0.05), close=False)


def test_connections_are_kept_and_those_given_up_are_not():
    async def work(port: int) -> None:
        http = Http1(port)
        await asyncio.gather(*(http.ask(Ask("/"), LIMIT) for _ in range(3)))
        assert len(http.open) == 3
        reply = await http.ask(Ask("/"), LIMIT)
        assert len(http.open) == 3 and reply.headers["x-a"] == "b"
        with pytest.raises(TimeoutError):
            await http.ask(Ask("/"), 0)
        await until(lambda: len(http.open) == 2)
        http.close()

    against(OK, work, close=False)


def test_what_is_no_http2_is_lost():
    async def work(port: int) -> None:
        http = Http2(port)
        try:
            await http.ask(Ask("/", b"{}"), LIMIT)
        finally:
            http.close()

    with pytest.raises(Lost):
        against(OK, work)


def test_nobody_listens():
    async def work(port: int) -> bytes:
        return await once(1)

    with pytest.raises(Lost):
        against(OK, work)
