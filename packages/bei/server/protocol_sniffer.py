"""The choice of a connection's protocol, and the limit on connections."""

import asyncio
import logging
from typing import Any

from uvicorn.server import ServerState

from bei.server import connections
from bei.server.http1 import Http1

log = logging.getLogger("bei")

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class ProtocolSniffer(asyncio.Protocol):
    """A connection until its protocol is chosen: by ALPN over TLS, otherwise by its first bytes (RFC 9113, §3).
    `Upgrade` does not change the protocol. uvicorn makes one per connection."""

    def __init__(self, server_state: ServerState, max_connections: int, **more: Any):
        self._given = {"server_state": server_state, **more}
        self._connections, self._max_connections = server_state.connections, max_connections
        self._received = b""

    # asyncio passes a Transport to the protocols of a server's streams, whatever the base class says.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._silence = asyncio.get_running_loop().call_later(connections.KEEP_ALIVE_SECONDS, transport.abort)
        if len(self._connections) >= self._max_connections:
            log.warning("a connection is refused: there are %d; see max_connections", len(self._connections))
            transport.abort()
        else:
            self._connections.add(self)  # type: ignore[arg-type]  # uvicorn asks no more of it than `shutdown`

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._silence.cancel()
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        secure = self.transport.get_extra_info("ssl_object")
        if secure is not None:
            self._become(http2=secure.selected_alpn_protocol() == "h2")
        elif self._received.startswith(_PREFACE) or not _PREFACE.startswith(self._received):
            self._become(http2=self._received.startswith(_PREFACE))

    def _become(self, *, http2: bool) -> None:
        self._leave()
        protocol = _protocol(http2)(**self._given)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(self._received)

    def shutdown(self) -> None:
        self.transport.close()


def _protocol(http2: bool) -> type[asyncio.Protocol]:
    if not http2:
        return Http1
    from bei.server.http2 import Http2  # importing it takes a tenth of a start, and few servers need it

    return Http2
