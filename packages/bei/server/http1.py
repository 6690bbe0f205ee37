"""HTTP/1.1: uvicorn's protocol, one message at a time, with bounds on the client's bytes and time."""

import asyncio
import re

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bei.api import error_reply
from bei.errors import Error, Malformed, RequestHeadTooLarge, TooSlow, Unimplemented, one_line
from bei.server import connections

# Bytes of request line and headers; in a chunked body, bytes of everything but the data.
MAX_REQUEST_HEAD = 1 << 16
_MAX_LINES = connections.MAX_HEADERS + 2  # of a request head, counted as they arrive, because as objects they are large
_TURN = 1 << 14  # bytes of a chunked body that are parsed at once; as chunks of one byte they take 2 ms
_FOR_A_PIECE = 64  # bytes that take as long to parse as the fixed cost of a piece
_LINGER_SECONDS = 2.0  # in which a client may read why its connection ends, while it still sends
_BLANK = re.compile(rb"[\r\n]*")
_UPGRADE = re.compile(rb"(?i:\nupgrade)(?=[ \t]*:)")


class _Flow(FlowControl):
    """Flow control that stays paused while it is held, whoever else resumes it."""

    held = False

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class _Dropped(list[tuple[bytes, bytes]]):
    """A list that keeps nothing."""

    def append(self, item: object) -> None:
        pass


_TRAILERS = _Dropped()  # trailers are no headers of the call


class Http1(HttpToolsProtocol):
    """uvicorn's protocol. Its parser never sees a second message before the first is answered: the following bytes
    wait, and reading is paused.

    llhttp cannot stop within its input, so it gets pieces that end where a message may end: after the empty line of a
    request head, after `content-length` bytes, after an empty line in a chunked body.
    """

    _unparsed, _at = b"", 0  # received bytes, and the start of the part that the parser has not seen
    _whole = True  # whether the last message that began has ended
    _in_request_head = False
    _head_bytes = 0  # of the request head so far; in a chunked body, bytes since the last data
    _lines = 0  # of the request head so far
    _left: int | None = 0  # bytes of the body still to come; None for a chunked body
    _refused = False
    _hurry: asyncio.TimerHandle | None = None

    # asyncio passes a Transport to the protocols of a server's streams, whatever the base class says.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._flow = self.flow = _Flow(transport)
        self._write_timeout = connections.WriteTimeout(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._write_timeout.stop()
        self._stop_hurry()
        self._unset_keepalive_if_required()
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timeout.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_timeout.stop()

    # -- from bytes to messages ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._unparsed:
            kept = max(self._at - 3, 0)  # an empty line may begin in the parsed part
            self._unparsed, self._at = self._unparsed[kept:] + data, self._at - kept
        else:
            self._unparsed = data
        self._read_in_time()

    def _read_in_time(self) -> None:
        self._unset_keepalive_if_required()
        self._read_on()
        # It waits for the end of a request head, or for the next one after other bytes.
        if self._is_waiting() and self._hurry is None:
            self._hurry = self.loop.call_later(connections.REQUEST_HEAD_SECONDS, self._lose_patience)

    def _read_on(self) -> None:
        """Parses the received bytes, up to a message that has no answer yet."""
        turn = _TURN
        while self._at < len(self._unparsed) and not self.transport.is_closing():
            if turn <= 0:
                self.loop.call_soon(self._read_on)
            if turn <= 0 or self._is_answering():
                return self._flow.hold()
            end = self._end_of_request_head() if self._whole or self._in_request_head else self._end_in_body()
            if end <= self._at:
                break
            if self._left is None:
                turn -= end - self._at + _FOR_A_PIECE
            piece, self._at = self._unparsed[self._at : end], end
            self._parse(piece)
        if self._at == len(self._unparsed):
            self._unparsed = b"" if self._whole else self._unparsed[-3:]
            self._at = len(self._unparsed)
        self._flow.held = False
        if self.flow.read_paused and (self._is_idle() or len(self.cycle.body) <= HIGH_WATER_LIMIT):
            self.flow.resume_reading()

    def _is_answering(self) -> bool:
        return self._whole and not self._is_idle()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_of_request_head(self) -> int:
        """The end of the request head; until it is complete, the end of its last complete line. Refuses a head that is
        too large."""
        data = self._unparsed
        if self._whole and not data[self._at : self._at + 1].isupper():
            gap = _BLANK.match(data, self._at)
            begin = gap.end() if gap else self._at
            self._head_bytes += begin - self._at
            self._at = begin
            if begin < len(data) and not data[begin : begin + 1].isupper():  # no method: the parser refuses it
                return len(data)
        at = self._at
        blank = at if self._in_request_head and data.startswith(b"\r\n", at) else data.find(b"\n\r\n", at) + 1
        if self._head_bytes + (blank or len(data)) - at > MAX_REQUEST_HEAD:
            self._refuse(RequestHeadTooLarge(f"the request's head is larger than {MAX_REQUEST_HEAD} bytes"))
            return self._at
        end = blank + 2 if blank else max(data.rfind(b"\n", at) + 1, at)
        self._head_bytes += end - at
        self._lines += data.count(b"\n", at, end)
        if self._lines > _MAX_LINES:
            self._refuse(RequestHeadTooLarge(f"the request has more than {connections.MAX_HEADERS} headers"))
            return at
        if _UPGRADE.search(data, max(at - 1, 0), end):
            self._ignore_upgrade(max(at - 1, 0), end)
        return end

    def _ignore_upgrade(self, start: int, end: int) -> None:
        """A server may ignore `Upgrade` (RFC 9110, §7.8); llhttp takes it for the end of HTTP, body included."""
        lines = _UPGRADE.sub(b"\nignored", self._unparsed[start:end])
        self._unparsed = self._unparsed[:start] + lines + self._unparsed[end:]

    def _end_in_body(self) -> int:
        at, data = self._at, self._unparsed
        if self._left is not None:
            end = min(at + self._left, len(data))
            self._left -= end - at
            return end
        line = data.find(b"\r\n\r\n", max(at - 3, 0), at + _TURN)
        end = line + 4 if line >= 0 else min(at + _TURN, len(data))
        self._head_bytes += end - at
        if self._head_bytes > MAX_REQUEST_HEAD:
            self._refuse(RequestHeadTooLarge(f"more than {MAX_REQUEST_HEAD} bytes of a chunked body are not data"))
            return at
        return end

    def _parse(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserError as exc:
            cause = exc.__context__
            self._refuse(
                cause if isinstance(cause, Error) else Malformed(f"the request is not HTTP/1.1: {one_line(exc)}")
            )

    def on_message_begin(self) -> None:
        if not self._is_idle():
            raise Malformed("a message begins within another")  # never: our framing and the parser's would differ
        self._whole, self._in_request_head = False, True
        super().on_message_begin()
        # ASGI types an extension as a dict; this one is a function, for our own use.
        self.scope["extensions"] = {connections.ABORT: self.transport.abort}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        self._in_request_head = False
        self._stop_hurry()
        self._left = self._length_of_body()
        if not self.url.startswith(b"/"):
            self._take_host_of_target()
        super().on_headers_complete()
        self.headers = _TRAILERS

    def _take_host_of_target(self) -> None:
        """The host of an absolute target counts instead of the header's (RFC 9112, §3.2.2)."""
        target = self.url.split(b"/")
        if len(target) > 2 and target[0].endswith(b":"):
            self.headers[:] = [(name, target[2] if name == b"host" else value) for name, value in self.headers]

    def _length_of_body(self) -> int | None:
        """In bytes; None for a chunked body. Raises Malformed or Unimplemented where llhttp accepts more than RFC
        9112."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Malformed(f"HTTP/{version} in a request line is not answered; send HTTP/1.1")
        if self.parser.should_upgrade():
            raise Unimplemented("CONNECT is not answered")
        codings, length = [], 0
        for name, value in self.headers:
            if name == b"transfer-encoding":
                codings.append(value)
            elif name == b"content-length":
                length = int(value)
        if codings and version == "1.0":
            raise Malformed("HTTP/1.0 has no transfer-encoding")
        if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
            raise Unimplemented("the only supported transfer-encoding is chunked")
        return None if codings else length

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole, self._head_bytes, self._lines = True, 0, 0
        super().on_message_complete()

    # -- and to answers -----------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # it closes once the client has read the answer, which may never happen
            self._forget()
            self.timeout_keep_alive_task = self.loop.call_later(connections.READING_SECONDS, self.transport.abort)
        elif self._at < len(self._unparsed):
            self._read_in_time()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def _is_waiting(self) -> bool:
        return not self._refused and not self.transport.is_closing() and self._is_idle()

    def _lose_patience(self) -> None:
        self._refuse(TooSlow(f"the request's head took more than {connections.REQUEST_HEAD_SECONDS:g} s"))

    def _stop_hurry(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _forget(self) -> None:
        self._unparsed, self._at = b"", 0

    def _refuse(self, error: Error) -> None:
        """Answers a message that cannot become a call, or a call whose body cannot be read, and ends the connection."""
        self._refused = True
        self._stop_hurry()
        self._forget()
        if not self._is_idle():
            if self.cycle.response_started:
                return self.transport.close()
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_rendered(error, "" if self._whole else self.url.decode("latin-1")))
        self._linger()

    def _linger(self) -> None:
        """Reads on for a while: closing with unread bytes resets the connection, and the client may never see the
        answer."""
        if not self.transport.can_write_eof():
            return self.transport.close()
        self.transport.write_eof()
        self._flow.held = False
        self.flow.resume_reading()
        self.timeout_keep_alive_task = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


def _rendered(error: Error, path: str) -> bytes:
    reply = error_reply(error, path)
    headers = {**reply.headers, "content-length": str(len(reply.body)), "connection": "close"}
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
    return b"".join((STATUS_LINE[reply.status], *lines, b"\r\n", reply.body))
