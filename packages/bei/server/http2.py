"""HTTP/2: hypercorn's protocol, with bounds on what it waits for."""

import asyncio
import logging
import sys
from typing import Any

import uvicorn
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from uvicorn.server import ServerState

from bei.errors import ClientGone
from bei.server import connections
from bei.server.connections import Unread

log = logging.getLogger("bei")

_STREAMS = 256  # requests at once on a connection, and what Baseten's client has in flight
_FAREWELL_SECONDS = 1.0  # for handlers to notice that their client has gone, before they are cancelled

CONFIG = Config()
CONFIG.errorlog = log
CONFIG.include_server_header = False
CONFIG.keep_alive_timeout, CONFIG.keep_alive_max_requests = connections.KEEP_ALIVE_SECONDS, sys.maxsize
CONFIG.h2_max_concurrent_streams = _STREAMS


class Http2(asyncio.StreamReaderProtocol):
    """hypercorn's, in uvicorn's books: one of `connections` until it closes, and `shutdown` drains it."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, **_: Any):
        super().__init__(asyncio.StreamReader(), self._converse)
        self._application, self._connections = config.loaded_app, server_state.connections
        self._context = WorkerContext(None)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._connections.add(self)
        self._transport, self._unread = transport, Unread(transport)
        # hypercorn waits for a first call for ever, and through a drain.
        self._uncalled = asyncio.get_running_loop().call_later(connections.KEEP_ALIVE_SECONDS, transport.abort)
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
                async with asyncio.timeout(_seconds_to_read(message)):
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
        server = TCPServer(ASGIWrapper(self._call), loop, CONFIG, self._context, {}, reader, writer)
        self._conversation = loop.create_task(server.run())
        self._conversation.add_done_callback(_log_failure)


def _log_failure(conversation: asyncio.Task[None]) -> None:
    """hypercorn fails, and so closes, where a client sends on after its answer."""
    if not conversation.cancelled() and conversation.exception():
        log.info("an HTTP/2 connection failed: %r", conversation.exception())


def _seconds_to_read(message: Any) -> float:
    return connections.READING_SECONDS + len(message.get("body", b"")) / connections.READING_RATE
