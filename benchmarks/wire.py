"""A client of our servers: requests over raw sockets that are answered, cut short or cancelled, each within a time
limit.

It is cheap, because it shares the processors with the server: httptools reads HTTP/1.1, h2 HTTP/2.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httptools

IDLE = 55.0  # seconds after which a kept connection is not used again; servers keep them for at least 60 s
STREAMS = 64  # at once on an HTTP/2 connection
_WINDOW = 1 << 24  # bytes of answers in flight over HTTP/2


_P = TypeVar("_P", bound=asyncio.Protocol)


class Lost(Exception):
    """The connection was closed before a whole answer."""


class Refused(Lost):
    """There was no connection."""


@dataclass(frozen=True, slots=True)
class Ask:
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"

    def http1(self) -> bytes:
        fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(self.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | dict(self.headers)).items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + self.body

    def http2(self) -> list[tuple[str, str]]:
        pseudo = {":method": self.method, ":path": self.path, ":scheme": "http", ":authority": "localhost"}
        return list({**pseudo, "content-type": "application/json", **self.headers}.items())


@dataclass(slots=True)
class Reply:
    """Header names are lower-case. `sent` and `done` are times of time.monotonic()."""

    sent: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    done: float = 0.0

    @property
    def seconds(self) -> float:
        return self.done - self.sent


class _Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time; also the callbacks of its parser."""

    def __init__(self, open_connections: set["_Connection"]):
        self._open, self.used = open_connections, time.monotonic()
        self._future: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._open.add(self)

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        self._reply, self._parser = Reply(time.monotonic()), httptools.HttpResponseParser(self)
        self._future = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._future

    def data_received(self, data: bytes) -> None:
        if self._future is None or self._future.done():  # the answer to bytes that are no request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._end(Lost(f"the answer is not HTTP: {exc}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._reply.body += body

    def on_message_complete(self) -> None:
        if self._reply.status >= 200:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        ended_by_closing = self._future is not None and "content-length" not in self._reply.headers
        self._end(None if ended_by_closing and self._reply.status >= 200 else Lost("closed without a whole answer"))

    def _end(self, error: Lost | None = None) -> None:
        if self._future is None or self._future.done():
            return
        self.used = self._reply.done = time.monotonic()
        if error:
            self._future.set_exception(error)
        else:
            self._future.set_result(self._reply)

    @property
    def reusable(self) -> bool:
        return self in self._open and not self.transport.is_closing() and time.monotonic() - self.used < IDLE


async def _connected(protocol: _P, open_connections: set[_P], port: int) -> _P:
    """Raises Refused."""
    try:
        await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)
    except OSError as exc:
        raise Refused(f"not connected: {exc.strerror}") from None
    except asyncio.CancelledError:  # uvloop closes the socket silently
        open_connections.discard(protocol)
        raise
    return protocol


class Http1:
    """As many kept connections as requests at once."""

    def __init__(self, port: int):
        self._port = port
        self._idle: list[_Connection] = []
        self.open: set[_Connection] = set()

    async def ask(self, ask: Ask, limit: float) -> Reply:
        """Raises TimeoutError after `limit` seconds, having closed the connection; Lost."""
        return await self.send(ask.http1(), limit)

    async def send(self, request: bytes, limit: float) -> Reply:
        """As `ask`, for bytes that need not be a request."""
        connection, whole = None, False
        try:
            async with asyncio.timeout(limit):
                connection = self._kept() or await self._connect()
                reply = await connection.ask(request)
            whole = reply.headers.get("connection") != "close"
            return reply
        finally:
            if whole:
                self._idle.append(connection)
            elif connection:
                connection.transport.abort()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.transport.abort()
        return None

    async def _connect(self) -> _Connection:
        return await _connected(_Connection(self.open), self.open, self._port)

    def close(self) -> None:
        for connection in list(self.open):
            connection.transport.abort()
        self._idle.clear()


class _Multiplexed(asyncio.Protocol):
    """An HTTP/2 connection, by prior knowledge."""

    def __init__(self, open_connections: set["_Multiplexed"]):
        self._open, self.used = open_connections, time.monotonic()
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.streams: dict[int, tuple[Reply, asyncio.Future[Reply]]] = {}
        self._unsent: dict[int, memoryview] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._open.add(self)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._write()

    def ask(self, ask: Ask) -> tuple[int, asyncio.Future[Reply]]:
        stream, future = self._h2.get_next_available_stream_id(), asyncio.get_running_loop().create_future()
        self.streams[stream] = Reply(time.monotonic()), future
        self._h2.send_headers(stream, ask.http2(), end_stream=not ask.body)
        if ask.body:
            self._unsent[stream] = memoryview(ask.body)
        self._write()
        return stream, future

    def reset(self, stream: int) -> None:
        """Resets a stream: nobody waits for its answer any more."""
        self._forget(stream)
        if self in self._open:
            try:
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                self._write()
            except h2.exceptions.ProtocolError:  # it has ended meanwhile
                pass

    def _write(self) -> None:
        for stream, rest in list(self._unsent.items()):
            while rest and (room := self._room(stream)):
                self._h2.send_data(stream, rest[:room].tobytes(), end_stream=room >= len(rest))
                rest = rest[room:]
            self._unsent[stream] = rest
            if not rest:
                del self._unsent[stream]
        self.transport.write(self._h2.data_to_send())

    def _room(self, stream: int) -> int:
        return min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._react(event)
            self._write()
        except h2.exceptions.ProtocolError as exc:
            self._fail(Lost(f"HTTP/2: {exc}"))
            self.transport.abort()

    def _react(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.transport.close()
        elif isinstance(event, h2.events.DataReceived):  # also of streams that were reset
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = getattr(event, "stream_id", None)
        if stream not in self.streams:
            return
        reply, future = self.streams[stream]
        match event:
            case h2.events.ResponseReceived():
                reply.headers = dict(event.headers)
                reply.status = int(reply.headers[":status"])
            case h2.events.DataReceived():
                reply.body += event.data
            case h2.events.StreamEnded():
                reply.done = time.monotonic()
                self._forget(stream)
                if not future.done():  # its asker may have just given up
                    future.set_result(reply)
            case h2.events.StreamReset():
                self._forget(stream)
                if not future.done():
                    future.set_exception(Lost(f"HTTP/2: stream reset, {event.error_code}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._fail(Lost("HTTP/2: closed without a whole answer"))

    def _fail(self, error: Lost) -> None:
        for stream, (_, future) in list(self.streams.items()):
            self._forget(stream)
            if not future.done():
                future.set_exception(error)

    def _forget(self, stream: int) -> None:
        self.used = time.monotonic()
        self.streams.pop(stream, None)
        self._unsent.pop(stream, None)

    @property
    def reusable(self) -> bool:
        fresh = bool(self.streams) or time.monotonic() - self.used < IDLE
        return fresh and len(self.streams) < STREAMS and not self.transport.is_closing()


class Http2:
    """Connections of many streams each; a cancelled request resets only its stream."""

    def __init__(self, port: int):
        self._port = port
        self.open: set[_Multiplexed] = set()

    async def ask(self, ask: Ask, limit: float) -> Reply:
        """Raises TimeoutError after `limit` seconds, having reset the stream; Lost."""
        connection, stream = None, None
        try:
            async with asyncio.timeout(limit):
                connection = next((one for one in self.open if one.reusable), None) or await self._connect()
                stream, future = connection.ask(ask)
                return await future
        finally:
            if stream in (connection.streams if connection else ()):
                connection.reset(stream)

    async def _connect(self) -> _Multiplexed:
        for stale in [one for one in self.open if not one.streams]:
            stale.transport.close()
        return await _connected(_Multiplexed(self.open), self.open, self._port)

    def close(self) -> None:
        for connection in list(self.open):
            connection.transport.abort()
