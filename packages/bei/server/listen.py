"""Sockets and signals: HTTP/1.1 and HTTP/2 prior knowledge on one port; SIGTERM drains and exits 0.

uvicorn's httptools protocol serves HTTP/1.1, for it costs a fifth of what others do (docs/design-notes.md); it has no
HTTP/2, so a connection that opens with HTTP/2's preface is handed to hypercorn's.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bei.errors import SetupError
from bei.server.app import Application

log = logging.getLogger("bei")

KEEP_ALIVE_SECONDS = 75
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises SetupError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise SetupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}; choose another with --port") from None
    return bound


def serve(
    app: Application,
    listener: socket.socket,
    *,
    load: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    drain_seconds: float = 30,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status: 0, or 2 when `load` raised.

    The port answers while `load` runs in a thread. At the first signal `on_stop` is called, no connection is accepted,
    and calls in flight have `drain_seconds` to finish; at the second the process ends at once.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = _Server(config, on_stop)
    threading.Thread(target=server.run_load, args=(load,), name="load", daemon=True).start()
    uvloop.run(server.serve(sockets=[listener]))
    return server.status


class _Server(uvicorn.Server):
    """uvicorn's own raises the signal again once it has drained, and so ends 143 after SIGTERM."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]):
        super().__init__(config)
        self._on_stop = on_stop
        self.status = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        log.info("%s: finishing what is in flight", signal.Signals(sig).name)
        self._on_stop()

    def run_load(self, load: Callable[[], None]) -> None:
        try:
            load()
        except SetupError as exc:
            log.error("%s", exc)
            self.status, self.should_exit = 2, True
        except Exception:
            log.exception("loading failed")
            self.status, self.should_exit = 2, True


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1, unless the first bytes are HTTP/2's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._opening: bytes | None = b""
        self._http2: WorkerContext | None = None

    def data_received(self, data: bytes) -> None:
        if self._opening is None:
            super().data_received(data)
            return
        opening = self._opening + data
        if len(opening) < len(_PREFACE) and _PREFACE.startswith(opening):
            self._opening = opening
            return
        self._opening = None
        if opening.startswith(_PREFACE):
            self._speak_http2(opening)
        else:
            super().data_received(opening)

    def shutdown(self) -> None:
        if self._http2 is None:
            super().shutdown()
        else:
            self.loop.create_task(self._http2.terminated.set())

    def _speak_http2(self, opening: bytes) -> None:
        reader = asyncio.StreamReader(loop=self.loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self.loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        writer = asyncio.StreamWriter(self.transport, protocol, reader, self.loop)
        self._http2 = WorkerContext(None)
        config = HypercornConfig()
        config.keep_alive_timeout, config.include_server_header = KEEP_ALIVE_SECONDS, False
        config.h2_max_concurrent_streams = 1000
        connection = TCPServer(ASGIWrapper(self.app), self.loop, config, self._http2, {}, reader, writer)
        task = self.loop.create_task(connection.run())
        self.tasks.add(task)
        task.add_done_callback(self._http2_closed)
        reader.feed_data(opening)

    def _http2_closed(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.connections.discard(self)
