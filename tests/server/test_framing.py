"""The framing of HTTP/1.1 on one protocol without a socket: as many answers as h11 sees requests, or a refusal and the
end of the connection."""

import asyncio
from collections.abc import Iterable, Iterator

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from bei.server.app import Application
from bei.server.http1 import Http1
from tests.server.framing import GET, VECTORS, Vector

Request = tuple[str, bytes]


class Transport(asyncio.Transport):
    """A connection on which `segments` arrive as fast as they are read."""

    def __init__(self, protocol: asyncio.Protocol, segments: Iterable[bytes]):
        super().__init__()
        self._segments, self._reading, self._closing = iter(segments), True, False
        self._protocol, self.written = protocol, b""
        protocol.connection_made(self)

    async def run(self, turns: int) -> None:
        for _ in range(3):  # a turn in which nothing comes may end in a call of the application
            while self._reading and not self._closing and (segment := next(self._segments, None)):
                self._protocol.data_received(segment)
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


async def converse(application: Application, segments: Iterable[bytes], turns: int) -> tuple[bytes, bool]:
    """The bytes sent back, and whether the connection ended."""
    config = uvicorn.Config(application, ws="none", lifespan="off", log_config=None)
    transport = Transport(Http1(config, ServerState(), {}), segments)
    await transport.run(turns)
    closed = transport.is_closing()
    transport.close()
    await asyncio.sleep(0)
    return transport.written, closed


def serve(segments: Iterable[bytes], turns: int = 20) -> tuple[list[Request], bytes, bool]:
    """The complete requests that the application saw, the bytes sent back, and whether the connection ended."""
    seen: list[Request] = []

    async def application(scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        seen.append((scope["method"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    written, closed = asyncio.run(converse(application, segments, turns))
    return seen, written, closed


def judge(data: bytes) -> tuple[list[Request], bool]:
    """The requests that h11 sees, and whether it reports an error."""
    connection, requests = h11.Connection(h11.SERVER), []
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method.decode(), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                requests.append((method, body))
                if method == "CONNECT":  # h11 would be a tunnel
                    return requests, False
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return requests, False
                connection.start_next_cycle()
            else:
                return requests, False
    except h11.RemoteProtocolError:
        return requests, True


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_the_answers_are_as_the_strict_parser_sees_requests(vector: Vector):
    seen, written, closed = serve([vector.data])
    assert len(seen) == vector.answered
    assert written.count(b"HTTP/1.1 200 ") == vector.answered
    refusals = sum(written.count(b"HTTP/1.1 %d " % status) for status in (400, 501))
    assert refusals == vector.refused
    if vector.refused:
        assert closed
    expected, faulty = judge(vector.data)
    agrees = (seen, vector.refused) == (expected, faulty)
    assert agrees != bool(vector.differs), (expected, faulty)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_nothing_hangs_on_where_it_is_cut(vector: Vector):
    whole = serve([vector.data])
    for cut in range(1, len(vector.data)):
        assert serve([vector.data[:cut], vector.data[cut:]]) == whole, vector.data[:cut]
    assert serve(bytes([byte]) for byte in vector.data) == whole


def test_what_waits_on_a_connection_is_one_request_and_one_read():
    read = 0

    def segments() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield GET * 2000

    asked = asyncio.Event()

    async def application(scope, receive, send) -> None:
        assert not asked.is_set(), "a second request, before the first is answered"
        asked.set()
        while (await receive())["type"] != "http.disconnect":  # a wait for the client's leave reads on
            pass

    asyncio.run(converse(application, segments(), 20))
    assert asked.is_set()
    assert read == 1


def test_a_fault_in_a_body_is_the_answer_to_its_call():
    seen, written, closed = serve([b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"x\r\n"])
    assert (seen, closed) == ([], True)
    assert written.startswith(b"HTTP/1.1 400 ")
    assert written.count(b"connection: close") == 1


@pytest.mark.parametrize(
    "filler", [b"0\r\n" + b"X: y\r\n" * 20_000, b"0\r\nX: " + b"y" * 100_000, b"1;" + b"x" * 99_999]
)
def test_what_is_no_body_in_a_chunked_one_is_bounded(filler):
    seen, written, closed = serve([b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", filler])
    assert (seen, closed) == ([], True)
    assert written.startswith(b"HTTP/1.1 431 ")


def test_a_trailer_is_no_header():
    headers = []

    async def application(scope, receive, send) -> None:
        headers.extend(name for name, _ in scope["headers"])
        while (await receive()).get("more_body"):
            pass
        headers.extend(name for name, _ in scope["headers"])

    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    asyncio.run(converse(application, [head + b"1\r\nx\r\n0\r\nAuthorization: Bearer k\r\n\r\n"], 20))
    assert headers == [b"host", b"transfer-encoding"] * 2


@pytest.mark.parametrize("opening", [b"", GET])
def test_empty_lines_before_a_head_are_bounded(opening):
    seen, written, closed = serve([opening, *[b"\r\n" * 10_000] * 5])
    assert (len(seen), closed) == (bool(opening), True)
    assert b"HTTP/1.1 431 " in written


def test_a_head_behind_a_large_body_is_not_counted_with_it():
    body = b"x" * 200_000
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + body
    seen, _, closed = serve([request + b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 60_000 + b"\r\n\r\n"])
    assert (seen, closed) == ([("POST", body), ("GET", b"")], False)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16_384, 100_000])
def test_chunks_of_every_size_arrive(size):
    body = (b"ab\r\n\r\ncd" * 30_000)[:200_000]
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i : i + size] for i in range(0, len(body), size))
    )
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen, _, _ = serve([head + chunks + b"0\r\n\r\n" + GET], turns=200)
    assert seen == [("POST", body), ("GET", b"")]
