"""Sockets and signals: HTTP/1.1 and HTTP/2 prior knowledge on one port; SIGTERM drains and exits 0.

uvicorn's httptools protocol serves HTTP/1.1 at the least cost, and has no HTTP/2; hypercorn has, at several times the
cost. So the first bytes of a connection choose (figures: docs/design-notes.md, "HTTP server").
"""

import asyncio
import logging
import os
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from bei.api.reply import render_error
from bei.errors import ClientGone, Error, HeadTooLarge, Malformed, SetupError, TooSlow

log = logging.getLogger("bei")

KEEP_ALIVE_SECONDS = 75  # clients keep idle connections for 30 s and proxies for 60: the server must not close first
HEAD_SECONDS = 20.0  # from the first byte of a request's head to its last
READING_SECONDS = 30.0  # for a client to read any answer; of a long one it has a second more for READING_RATE bytes
READING_RATE = 4096
MAX_HEAD = 1 << 16  # bytes of request line and headers
_LOOK_SECONDS = 0.02
_STREAMS = 256  # requests at once on an HTTP/2 connection, and what Baseten's client has in flight
BACKLOG = 2048
_FAREWELL_SECONDS = 1.0  # for handlers to notice that their HTTP/2 client has gone, before they are cancelled
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*h2c\r\n", re.IGNORECASE)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_HTTP2 = HypercornConfig()
_HTTP2.errorlog = log
_HTTP2.include_server_header = False
_HTTP2.keep_alive_timeout, _HTTP2.keep_alive_max_requests = KEEP_ALIVE_SECONDS, sys.maxsize
_HTTP2.h2_max_concurrent_streams = _STREAMS


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises SetupError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as exc:
        bound.close()
        reason = getattr(exc, "strerror", None) or exc
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port") from None
    return bound


def tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, for HTTP/2 and HTTP/1.1; None without a certificate. `key` may be in the file of `cert`. Raises
    SetupError."""
    if cert is None:
        if key is not None:
            raise SetupError("setting tls_key: a key without a certificate; set tls_cert, too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # else OpenSSL asks whoever sits at the terminal
    except ssl.SSLError as exc:
        raise SetupError(
            f"settings tls_cert and tls_key: {cert} and {key or cert} are no certificate and its key in PEM, without a "
            f"password ({exc.reason or 'not PEM'})"
        ) from None
    except OSError as exc:
        raise SetupError(f"settings tls_cert and tls_key: {cert}, {key or cert}: {exc.strerror}") from None
    return context


def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    load: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    drain_seconds: float = 30,
    max_connections: int = 4096,
    secure: ssl.SSLContext | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status: 0, or 2 when `load` raised.

    The port answers while `load` runs in a thread. At the first signal `on_stop` is called, and calls in flight have
    `drain_seconds` to finish: as long the port answers; a second signal ends the process at once. So does the first
    while `load` runs, for its downloads cannot be cancelled. With `secure` the port speaks TLS and nothing else.
    """
    calls = _Calls(app)
    config = uvicorn.Config(
        calls,
        http=partial(_Opening, max_connections=max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        ssl_context_factory=None if secure is None else lambda config, default: secure,
    )
    server = _Server(config, calls, on_stop)
    loading = threading.Thread(target=server.run_load, args=(load,), name="load", daemon=True)
    loading.start()
    uvloop.run(server.serve(sockets=[listener]))
    if loading.is_alive():
        _exit(server.status)
    return server.status


def _exit(status: int) -> None:
    """Without waiting for other threads, and without tearing the interpreter down under them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Calls:
    """An application that knows how many calls it has not answered."""

    def __init__(self, app: ASGIApp):
        self._app, self.open = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1


class _Server(uvicorn.Server):
    """uvicorn's own closes the port before it drains, raises the signal again after, and so ends 143 after SIGTERM."""

    def __init__(self, config: uvicorn.Config, calls: _Calls, on_stop: Callable[[], None]):
        super().__init__(config)
        self._calls, self._on_stop = calls, on_stop
        self._draining: asyncio.Task[None] | None = None
        self._told = False
        self.status = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            os._exit(128 + sig)
        self._told = True
        # Not here: a handler may run while its own thread holds the lock of a logger or a metric.
        asyncio.get_running_loop().call_soon_threadsafe(self._stop, signal.Signals(sig).name)

    def _stop(self, name: str) -> None:
        self._on_stop()
        log.info("%s: draining, %d calls in flight; again to stop at once", name, self._calls.open)
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """uvicorn's own shutdown, and the end of the port, once all calls are answered."""
        now = asyncio.get_running_loop().time
        deadline = now() + self.config.timeout_graceful_shutdown
        while self._calls.open and now() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        self.config.timeout_graceful_shutdown = max(0.0, deadline - now())
        self.should_exit = True

    def run_load(self, load: Callable[[], None]) -> None:
        try:
            load()
        except SetupError as exc:
            log.error("%s", exc)
            self.status, self.should_exit = 2, True
        except Exception:
            log.exception("loading failed")
            self.status, self.should_exit = 2, True


class _Opening(asyncio.Protocol):
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
        protocol = (_Http2 if self._offers_http2() else _Http1)(**self._given)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._opening)

    def _offers_http2(self) -> bool:
        """By its preface, or as Java's client does, by an upgrade; uvicorn would drop the body of that request."""
        head = self._opening.partition(b"\r\n\r\n")[0] + b"\r\n"
        return self._opening.startswith(_PREFACE) or _UPGRADE.search(head) is not None

    def shutdown(self) -> None:
        self._transport.close()


class _Unread:
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
        self._unread = _Unread(transport)

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


class _Http2(asyncio.StreamReaderProtocol):
    """hypercorn's, in uvicorn's books: one of `connections` until it closes, and `shutdown` drains it."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, **_: Any):
        super().__init__(asyncio.StreamReader(), self._converse)
        self._application, self._connections = config.loaded_app, server_state.connections
        self._context = WorkerContext(None)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._connections.add(self)
        self._transport, self._unread = transport, _Unread(transport)
        # hypercorn waits for a first call for ever, and through a drain.
        self._uncalled = asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, transport.abort)
        super().connection_made(transport)

    def eof_received(self) -> bool:
        super().eof_received()
        return False  # close: hypercorn would wait for ever to answer on what its client has closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.stop()
        self._uncalled.cancel()
        self._connections.discard(self)
        super().connection_lost(exc)
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._conversation.cancel)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread.stop()

    def shutdown(self) -> None:
        self._draining = asyncio.ensure_future(self._context.terminated.set())
        if not self._uncalled.cancelled():
            self._transport.close()

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, for a client that takes its answers: one that opens no window for them is gone."""

        self._uncalled.cancel()

        async def send_in_time(message: Any) -> None:
            try:
                async with asyncio.timeout(READING_SECONDS + len(message.get("body", b"")) / READING_RATE):
                    await send(message)
            except TimeoutError:
                self._transport.abort()
                raise ClientGone("the client does not read its answer") from None

        try:
            await self._application(scope, receive, send_in_time)
        except ClientGone as error:
            log.info("%d %s: %s", error.status, scope["path"], error)

    def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        server = TCPServer(ASGIWrapper(self._call), loop, _HTTP2, self._context, {}, reader, writer)
        self._conversation = loop.create_task(server.run())
        self._conversation.add_done_callback(_log_failure)


def _log_failure(conversation: asyncio.Task[None]) -> None:
    """hypercorn fails, and so closes, where a client sends on after its answer."""
    if not conversation.cancelled() and conversation.exception():
        log.info("an HTTP/2 connection failed: %r", conversation.exception())
