"""Sockets and signals: HTTP/1.1 and HTTP/2 with prior knowledge on one port (protocol_sniffer.py). SIGTERM drains, and
the exit status is 0.

uvicorn's httptools protocol serves HTTP/1.1 at the least cost, but has no HTTP/2. h2 has HTTP/2, as frames without a
server. So the first bytes of a connection choose the protocol (figures: docs/design-notes.md, "HTTP server").
"""

import asyncio
import contextvars
import errno
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from bei.errors import SetupError, address, why
from bei.server import connections, protocol_sniffer
from bei.server.rests import Rests

Application = Callable[[Any, Any, Any], Awaitable[None]]  # an ASGI application

log = logging.getLogger("bei")

BACKLOG = 2048
_LAST_SECONDS = 1.0  # to write and read the last answer
_LOOK_SECONDS = 0.02  # between checks of the calls in flight, while draining


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises SetupError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as exc:
        bound.close()
        place = address(host, port)
        raise SetupError(f"cannot listen on {place}: {why(exc)}; choose another with --host or --port") from None
    return bound


class PathSocket(socket.socket):
    """A Unix socket that knows the path and the inode of its file."""

    made: tuple[Path, int] | None = None


def bind_path(path: Path) -> PathSocket:
    """A bound Unix socket for its owner and its group (0660). It replaces a socket that nobody listens on. Raises
    SetupError."""
    bound = PathSocket(socket.AF_UNIX)
    mask = os.umask(0o117)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        bound.bind(str(path))
        bound.listen(BACKLOG)  # at once, so that another server sees that it is in use
        bound.made = path, path.stat().st_ino
    except OSError as exc:
        bound.close()
        raise SetupError(f"setting uds_path: cannot listen on {path}: {why(exc)}; choose another") from None
    finally:
        os.umask(mask)
    return bound


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def remove_path(listener: socket.socket) -> None:
    """Removes the file of a Unix socket that this process made."""
    if isinstance(listener, PathSocket) and listener.made is not None:
        path, inode = listener.made
        with suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


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
        context.load_cert_chain(cert, key, password=lambda: "")  # otherwise OpenSSL asks for a password at the terminal
    except ssl.SSLError as exc:
        raise SetupError(
            f"settings tls_cert and tls_key: {cert} and {key or cert} are not a PEM certificate and an unencrypted key "
            f"({exc.reason or 'not PEM'})"
        ) from None
    except OSError as exc:
        raise SetupError(f"settings tls_cert and tls_key: {cert}, {key or cert}: {why(exc)}") from None
    return context


def serve(
    app: Application,
    listener: socket.socket,
    *,
    load: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    drain_seconds: float = 30,
    max_connections: int = 4096,
    secure: ssl.SSLContext | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit status: 0, or 2 when `load` raised.

    The port answers while `load` runs in a thread. At the first signal `on_stop` is called. Calls in flight then have
    `drain_seconds` to finish, and the port answers as long. A second signal ends the process at once; so does the first
    one while `load` runs, because its downloads cannot be cancelled. With `secure` the port speaks TLS only.
    """
    calls = _Calls(app)
    config = uvicorn.Config(
        calls,
        http=partial(protocol_sniffer.ProtocolSniffer, max_connections=max_connections),  # type: ignore[arg-type]  # is called as a class is
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=connections.KEEP_ALIVE_SECONDS,
        ssl_context_factory=None if secure is None else lambda config, default: secure,
    )
    server = _Server(config, calls, on_stop, drain_seconds)
    loading = threading.Thread(target=server.run_load, args=(load,), name="load", daemon=True)
    loading.start()
    uvloop.run(server.serve(sockets=[listener]))
    if loading.is_alive():
        _exit(server.status, listener)
    return server.status


def _exit(status: int, listener: socket.socket) -> None:
    """Exits without waiting for other threads, and without tearing down the interpreter under them."""
    remove_path(listener)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Calls:
    """An application that counts its unanswered calls, on a loop that rests."""

    def __init__(self, app: Application):
        self._app, self.open = app, 0
        self._rests = Rests()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.open += 1
        self._rests.look()
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1


class _Server(uvicorn.Server):
    """uvicorn's own server closes the port before it drains, and raises the signal again afterwards, so it exits with
    143."""

    def __init__(self, config: uvicorn.Config, calls: _Calls, on_stop: Callable[[], None], drain_seconds: float):
        super().__init__(config)
        self._calls, self._on_stop, self._drain_seconds = calls, on_stop, drain_seconds
        self._deadline = 0.0
        self._draining: asyncio.Task[None] | None = None
        self._told = False
        self.status = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            os._exit(128 + sig)
        self._told = True
        # Not in the handler: its thread may hold the lock of a logger or a metric.
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._stop, signal.Signals(sig).name, context=contextvars.Context())  # of no request

    def _stop(self, name: str) -> None:
        self._on_stop()
        log.info("%s: draining, %d calls in flight; again to stop at once", name, self._calls.open)
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Keeps the port open until all calls are answered or the time is over; then the remaining calls get a 503."""
        now = asyncio.get_running_loop().time
        self._deadline = now() + self._drain_seconds
        await self._until(lambda: not self._calls.open, self._deadline)
        if self._calls.open:
            await self._cut_off()
        if self._calls.open:
            told = "%d calls did not finish in %g s, and get a 503; --drain-seconds gives more time"
            log.warning(told, self._calls.open, self._drain_seconds)
            for task in list(self.server_state.tasks):
                task.cancel()
            await self._until(lambda: not self._calls.open, now() + _LAST_SECONDS)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the port, and each connection when its client has read everything."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        last = asyncio.get_running_loop().time() + _LAST_SECONDS
        await self._until(lambda: not self.server_state.connections, max(self._deadline, last))
        await self._cut_off()

    async def _cut_off(self) -> None:
        """Ends connections whose clients do not read."""
        stuck = [one.transport for one in self.server_state.connections if one.transport.get_write_buffer_size()]
        for transport in stuck:
            transport.abort()
        if stuck:
            log.warning("%d connections are cut off: their clients do not read", len(stuck))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        now = asyncio.get_running_loop().time
        while not done() and now() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)

    def run_load(self, load: Callable[[], None]) -> None:
        try:
            load()
        except SetupError as exc:
            log.error("%s", exc)
            self.status, self.should_exit = 2, True
        except Exception:
            log.exception("loading failed")
            self.status, self.should_exit = 2, True
