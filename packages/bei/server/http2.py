"""HTTP/2. h2 reads and writes the frames; this module has the calls, the windows, and bounds on a client."""

import asyncio
import logging
from typing import Any
from urllib.parse import unquote

import uvicorn
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from uvicorn.server import ServerState

from bei.errors import ClientGone
from bei.server import connections, request_heads
from bei.server.holding import Holding

log = logging.getLogger("bei")

STREAMS = 256  # calls at once on a connection, as many as Baseten's client sends
_TABLE = 1 << 12  # bytes of our encoder's header table, which it searches for each header
_TURN = 1 << 11  # bytes that are parsed at once; as the smallest frames they take 5 ms

# A client spends a credit of bytes on everything but bodies; answered calls and time renew it.
_CREDIT = 1 << 17
_CREDIT_A_SECOND = 256
_FOR_AN_ANSWER = 1 << 12
_FOR_A_FRAME = 64  # because we answer it with two WINDOW_UPDATEs
_FOR_A_REQUEST_HEAD = 1 << 10  # at most; a cancelled call costs as much
# Free bytes of a decoded request head. Bytes beyond cost credit: a reference to the table is one byte on the wire.
_FREE = 1 << 12
_FOR_THE_REST = 1 / 10


class Stream:
    """A call: the received part of its body, the length that its request head states, and the events that its answer
    waits for."""

    def __init__(self, number: int, length: int | None = None):
        self.number, self.body, self.unacknowledged = number, bytearray(), 0
        self.length, self.came = length, 0
        self.ended = self.gone = self.answered = self.told = False
        self.changed, self.room = asyncio.Event(), asyncio.Event()

    @property
    def is_as_said(self) -> bool:
        """Whether the length of the body so far, or at its end, agrees with the request head."""
        return self.length is None or (self.came == self.length if self.ended else self.came <= self.length)

    def leave(self) -> None:
        self.gone = True
        self.changed.set()
        self.room.set()


class Http2(asyncio.Protocol):
    """One connection, registered with uvicorn: one of `connections` until it closes, with its calls among `tasks`."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, **_: Any):
        self._application, self._books = config.loaded_app, server_state
        self._streams: dict[int, Stream] = {}
        self._unparsed = bytearray()
        self._credit, self._counted = float(_CREDIT), 0.0
        self._leaving = self._taking = False
        self._holding = Holding()
        self._writable = asyncio.Event()
        self._writable.set()

    # -- the connection -----------------------------------------------------------------------------------------------

    # asyncio gives a Transport to the protocols of a server's streams, whatever their base says.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        self._books.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks no more of it than `shutdown`
        self.transport, self._write_timeout = transport, connections.WriteTimeout(transport)
        self._h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=False)
        )
        self._h2.decoder = request_heads.RequestHeadDecoder(self._h2.decoder.max_header_list_size, self._pay_for)
        self._h2.local_settings = _settings(STREAMS)
        self._h2.initiate_connection()
        self._h2.local_settings = _settings(1 << 30)  # otherwise h2 would end the connection for one stream too many
        self._counted = self._loop.time()
        self._rest()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._write_timeout.stop()
        self._idle.cancel()
        self._books.connections.discard(self)
        self._unparsed.clear()
        self._writable.set()
        self._abandon()

    def eof_received(self) -> None:
        """Closes the transport: a client that sends no more is not answered."""

    def pause_writing(self) -> None:
        self._writable.clear()
        self._write_timeout.start()
        self._read_on()

    def resume_writing(self) -> None:
        self._writable.set()
        self._write_timeout.stop()
        self._read_on()

    def shutdown(self) -> None:
        """Ends the connection once the calls in flight are answered."""
        self._leaving = True
        if not self._streams:
            self._end()

    def _end(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        if not self.transport.is_closing():
            self._h2.close_connection(code)
            self._close()

    def _close(self) -> None:
        """Sends only the remaining frames of h2; the client may not read them."""
        self._flush()
        self.transport.close()
        self._abandon()
        self._loop.call_later(connections.READING_SECONDS, self.transport.abort)

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.leave()

    def _rest(self) -> None:
        self._idle = self._loop.call_later(connections.KEEP_ALIVE_SECONDS, self._end)

    def _flush(self) -> None:
        if (data := self._h2.data_to_send()) and not self.transport.is_closing():
            self.transport.write(data)

    # -- what comes ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._read_on()

    def _read_on(self) -> None:
        """Parses the received bytes piece by piece, one piece per turn of the loop. Reading is paused meanwhile, and
        while the client does not read."""
        if self.transport.is_closing():
            return
        if self._unparsed and self._writable.is_set() and not self._taking:
            self._take()
        if self._unparsed or not self._writable.is_set():
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _take(self) -> None:
        piece = bytes(self._unparsed[:_TURN])
        del self._unparsed[:_TURN]
        try:
            happened = self._h2.receive_data(piece)
        except ProtocolError as error:
            log.info("an HTTP/2 connection ends: %s", error)
            return self._close()
        self._earn_by_time()
        self._credit -= len(piece)
        for event in happened:
            self._handle(event)
            if self._credit < 0:
                break
        self._flush()
        if self.transport.is_closing():
            return None
        if self._credit < 0:
            log.info("an HTTP/2 connection ends: its client sends more request heads and frames than calls and bodies")
            return self._end(ErrorCodes.ENHANCE_YOUR_CALM)
        if self._unparsed:
            self._taking = True
            self._loop.call_soon(self._take_next)

    def _take_next(self) -> None:
        self._taking = False
        self._read_on()

    def _earn_by_time(self) -> None:
        now = self._loop.time()
        self._earn((now - self._counted) * _CREDIT_A_SECOND)
        self._counted = now

    def _earn(self, count: float) -> None:
        self._credit = min(self._credit + count, _CREDIT)

    def _pay_for(self, size: int) -> None:
        self._credit -= max(0, size - _FREE) * _FOR_THE_REST

    def _handle(self, event: events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", 0))
        match event:
            case events.RequestReceived():
                self._open(event.stream_id, event.headers)
            case events.DataReceived() if stream is not None and not stream.answered:
                self._earn(2 * len(event.data))
                stream.body += event.data
                stream.came += len(event.data)
                stream.unacknowledged += event.flow_controlled_length
                self._go_on(stream)
            case events.DataReceived():
                self._earn(len(event.data))
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case events.StreamEnded() if stream is not None:
                stream.ended = True
                self._go_on(stream)
            case events.StreamReset() if stream is not None:
                self._credit -= _FOR_A_REQUEST_HEAD
                stream.leave()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                self._h2.encoder.header_table_size = min(self._h2.encoder.header_table_size, _TABLE)
                for waiting in [stream] if stream is not None else self._streams.values():
                    waiting.room.set()
            case events.ConnectionTerminated():  # h2 sends nothing after it
                self._close()

    def _go_on(self, stream: Stream) -> None:
        if stream.is_as_said or stream.gone:
            return stream.changed.set()
        self._h2.reset_stream(stream.number, ErrorCodes.PROTOCOL_ERROR)
        stream.leave()

    def _open(self, number: int, shown: request_heads.RequestHead) -> None:
        request_head = request_heads.shown(shown)
        self._earn(min(_FOR_A_REQUEST_HEAD, request_heads.size(request_head)))
        try:
            request_heads.check(request_head)
            scope, length = self._scope(request_head), request_heads.length(request_head)
        except (ProtocolError, ValueError):
            return self._h2.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
        if self._leaving or len(self._streams) >= STREAMS:
            return self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
        self._idle.cancel()
        stream = self._streams[number] = Stream(number, length)
        task = self._loop.create_task(self._call(stream, scope))
        self._books.tasks.add(task)
        task.add_done_callback(self._books.tasks.discard)

    def _scope(self, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        """The ASGI scope of a request head. Raises ProtocolError or ValueError for one that is not a call's."""
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        fields = [(name, value) for name, value in headers if not name.startswith(b":")]
        if pseudo[b":method"] == b"CONNECT":
            raise ProtocolError("CONNECT is not answered")
        if b":authority" in pseudo:
            fields = [(b"host", pseudo[b":authority"]), *((name, value) for name, value in fields if name != b"host")]
        path, _, query = pseudo[b":path"].partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": pseudo[b":method"].decode("ascii"),
            "scheme": pseudo[b":scheme"].decode("ascii"),
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": fields,
            "client": self.transport.get_extra_info("peername"),
            "server": self.transport.get_extra_info("sockname"),
            "extensions": {connections.ABORT: self.transport.abort},
        }

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _call(self, stream: Stream, scope: dict[str, Any]) -> None:
        expects = any(name == b"expect" for name, _ in scope["headers"])
        started: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            nonlocal expects
            if expects and not stream.gone:
                expects = False
                self._h2.send_headers(stream.number, [(b":status", b"100")])
                self._flush()
            return await self._receive(stream)

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                await self._answer_in_time(stream, started, message)

        try:
            async with self._holding.call(sum(len(name) + len(value) for name, value in scope["headers"])):
                await self._application(scope, receive, send)
        except ClientGone as error:
            log.info("%d %s: %s", error.status, scope["path"], error)
        except Exception:
            log.exception("unexpected fault in %s %s", scope["method"], scope["path"])
        finally:
            self._finish(stream)

    async def _receive(self, stream: Stream) -> dict[str, Any]:
        while not (stream.gone or stream.body or (stream.ended and not stream.told)):
            stream.changed.clear()
            await stream.changed.wait()
        if stream.gone:
            return {"type": "http.disconnect"}
        body, stream.body, stream.told = bytes(stream.body), bytearray(), stream.ended
        self._acknowledge(stream)
        return {"type": "http.request", "body": body, "more_body": not stream.ended}

    def _acknowledge(self, stream: Stream) -> None:
        """Gives the window back for the bytes that have been read, or that nobody will read."""
        if stream.unacknowledged:
            self._h2.acknowledge_received_data(stream.unacknowledged, stream.number)
            stream.unacknowledged = 0
            self._flush()

    async def _answer_in_time(self, stream: Stream, start: dict[str, Any], message: dict[str, Any]) -> None:
        """Sends a part of the answer, or all of it. Raises ClientGone where the client does not read in time."""
        body, more = message.get("body", b""), message.get("more_body", False)
        try:
            self._holding.add(len(body))
            async with asyncio.timeout(connections.READING_SECONDS + len(body) / connections.READING_RATE):
                await self._answer(stream, start, body, more)
        except TimeoutError:
            self.transport.abort()
            raise ClientGone("the client does not read its answer") from None
        finally:
            self._holding.add(-len(body))

    async def _answer(self, stream: Stream, start: dict[str, Any], body: bytes, more: bool) -> None:
        if stream.gone:
            return
        if start:
            fields = [(b":status", b"%d" % start["status"]), *start["headers"]]
            self._h2.send_headers(stream.number, fields, end_stream=not (body or more))
            start.clear()
        elif not (body or more):
            self._h2.end_stream(stream.number)
        sent = 0
        while sent < len(body):
            size = min(self._h2.local_flow_control_window(stream.number), self._h2.max_outbound_frame_size)
            if size <= 0 or not self._writable.is_set():
                await self._room(stream)
                if stream.gone:
                    return
                continue
            part = body[sent : sent + size]
            sent += len(part)
            self._h2.send_data(stream.number, part, end_stream=sent == len(body) and not more)
            self._earn(_FOR_A_FRAME)
            self._flush()
        self._flush()
        if not more:
            stream.answered = True
            self._earn(_FOR_AN_ANSWER)

    async def _room(self, stream: Stream) -> None:
        """Waits until there may be room in the windows, and the transport accepts more."""
        self._flush()
        if self._writable.is_set():
            stream.room.clear()
            await stream.room.wait()
        await self._writable.wait()

    def _finish(self, stream: Stream) -> None:
        """Ends the stream after its answer; a body that still comes is not needed."""
        del self._streams[stream.number]
        if not self.transport.is_closing():
            self._acknowledge(stream)
            if not stream.gone and not stream.answered:
                self._h2.reset_stream(stream.number, ErrorCodes.INTERNAL_ERROR)
            elif not stream.gone and not stream.ended:
                self._h2.reset_stream(stream.number, ErrorCodes.NO_ERROR)
            self._flush()
        if self._leaving and not self._streams:
            self._end()
        elif not self._streams and not self.transport.is_closing():
            self._rest()


def _settings(streams: int) -> Settings:
    values = {SettingCodes.MAX_CONCURRENT_STREAMS: streams, SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16}
    return Settings(client=False, initial_values=values)
