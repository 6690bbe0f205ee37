"""A client's connection that costs little beside the server that it measures: HTTP/1.1, kept alive, one request at a
time."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

from bei.errors import address

JSON: Mapping[str, str] = {"content-type": "application/json"}


@dataclass(frozen=True)
class Place:
    """Where a server listens. `tls` is for https."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST of JSON."""
        fields = {"host": address(self.host, self.port), **JSON, "content-length": str(len(body)), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body

    async def connect(self) -> "Connection":
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, self.host, self.port, ssl=self.tls)
        return made


class Connection(asyncio.Protocol):
    """`is_open` while the next request may be sent."""

    def __init__(self) -> None:
        self.is_open = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer, when the whole of it has come. Closes the connection if none comes: raises
        ConnectionError, and TimeoutError if it was given up."""
        if self._transport is None or not self.is_open:
            raise ConnectionError("the connection is closed")
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            status: int = await answer
        except BaseException:  # the client's end, too: an answer may still come, and would be the next request's
            self.close()
            raise
        return status

    def give_up(self) -> None:
        """Ends the wait for the answer: `ask` raises TimeoutError."""
        self._end(TimeoutError())

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(ConnectionError("the answer is not HTTP"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError("the server hung up"))

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.is_open = self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def _end(self, error: OSError) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
