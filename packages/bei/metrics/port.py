"""A port for metrics alone."""

import socket
import sys
import threading
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client.exposition import ThreadingWSGIServer

from bei.errors import SetupError, address, why
from bei.metrics.counted import Metrics
from bei.metrics.exposition import CONTENT_TYPE

CONNECTIONS = 16  # at once
_CONNECTION_SECONDS = 10.0


def listen(metrics: Metrics, host: str, port: int) -> None:
    """Serves the metrics also on a port of their own, from a thread. Raises SetupError."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("content-type", CONTENT_TYPE)])
        return [metrics.shared_exposition().result()]

    try:
        server = make_server(host, port, application, _Ipv6 if ":" in host else _Bounded, _Silent)
    except (OSError, OverflowError) as exc:
        place = address(host, port)
        raise SetupError(f"cannot serve metrics on {place}: {why(exc)}; choose another --prometheus-port") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Bounded(ThreadingWSGIServer):
    """A server with a limited number of connections, each for a limited time; further ones are closed."""

    request_queue_size = 64

    def __init__(self, *of_wsgi: Any):
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*of_wsgi)

    def process_request(self, request: Any, client: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client: Any) -> None:
        end = threading.Timer(_CONNECTION_SECONDS, _hang_up, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: Any, client: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # its client has left
            super().handle_error(request, client)


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Ipv6(_Bounded):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
