"""Connections: the first bytes tell HTTP/1.1 from HTTP/2, and no client is waited for without end."""

import asyncio
import logging
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from bei.api.reply import render_error
from bei.errors import Error, HeadTooLarge, Malformed, TooSlow

log = logging.getLogger("bei")

KEEP_ALIVE_SECONDS = 75  # clients keep idle connections for 30 s and proxies for 60: the server must not close first
HEAD_SECONDS = 20.0  # from the first byte of a request's head to its last
READING_SECONDS = 30.0  # for a client to read any answer; of a long one it has a second more for READING_RATE bytes
READING_RATE = 4096
MAX_HEAD = 1 << 16  # bytes of request line and headers
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*h2c\r\n", re.IGNORECASE)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Opening(asyncio.Protocol):
    """A connection until its first bytes tell HTTP/1.1 from HTTP/2. uvicorn makes one for each."""

    def __init__(self, server_state: ServerState, max_connections: int, **more: Any):
        self._given = {"server_state": server_state, **more}
        self._connections, self._max_connections = server_state.connections, max_connections
        self._opening = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._silence = asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, transport.abort)
        if len(self._connections) >= self._max_connections:
            log.warning("a connection is refused: there are %d; see max_connections", len(self._connections))
            transport.abort()
        else:
            self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._silence.cancel()
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._opening += data
        if len(self._opening) < len(_PREFACE) and _PREFACE.startswith(self._opening):
            return
        self._leave()
        protocol = self._protocol()(**self._given)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._opening)

    def _protocol(self) -> type[asyncio.Protocol]:
        if not self._offers_http2():
            return _Http1
        from bei.server.http2 import Http2  # a tenth of a start, which few servers need

        return Http2

    def _offers_http2(self) -> bool:
        """By its preface, or as Java's client does, by an upgrade; uvicorn would drop the body of that request."""
        head = self._opening.partition(b"\r\n\r\n")[0] + b"\r\n"
        return self._opening.startswith(_PREFACE) or _UPGRADE.search(head) is not None

    def shutdown(self) -> None:
        self._transport.close()


class Unread:
    """Ends a connection whose client does not read: of what waits in its buffer, so much has to go a second."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._end: asyncio.TimerHandle | None = None

    def start(self) -> None:
        seconds = READING_SECONDS + self._transport.get_write_buffer_size() / READING_RATE
        self._end = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def stop(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


class _Http1(HttpToolsProtocol):
    """uvicorn's, with bounds on what it waits for and takes: a request's head, a client that reads its answer."""

    _answering: RequestResponseCycle | None = None
    _head: int | None = None
    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._unread = Unread(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.stop()
        self._stop_hurry()
        self._unset_keepalive_if_required()
        if self._answering is not None:  # of several in a pipeline uvicorn tells the last
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread.stop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(HeadTooLarge(f"the request's head is larger than {MAX_HEAD} bytes"))
        if self._is_waiting() and self._hurry is None:  # for the end of a head, or for a head after something else
            self._hurry = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def _is_waiting(self) -> bool:
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def _lose_patience(self) -> None:
        self._refuse(TooSlow(f"the request's head took more than {HEAD_SECONDS:g} s"))

    def _stop_hurry(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop_hurry()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # once its client has read the answer, which it may never do
            self.timeout_keep_alive_task = self.loop.call_later(READING_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Malformed(msg))

    def _refuse(self, error: Error) -> None:
        """Answer what never became a call, unless another's answer is on its way; and close."""
        if self._is_waiting():
            reply = render_error(error, self.url.decode("latin-1") if self._head is not None else "")
            headers = {**reply.headers, "content-length": str(len(reply.body)), "connection": "close"}
            lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
            self.transport.write(b"".join((STATUS_LINE[reply.status], *lines, b"\r\n", reply.body)))
        self.transport.close()
