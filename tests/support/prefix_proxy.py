"""A proxy that passes on only what is below a prefix, which it removes: everything else is its own 404."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx

_OF_A_HOP = {"connection", "content-encoding", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
"""Headers that a proxy writes itself; httpx has decoded the content."""


@contextmanager
def below(prefix: str, server: str) -> Iterator[tuple[str, list[str]]]:
    """The proxy's address of the server's /, and the paths that it refused."""
    refused: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        """One call, passed on."""

        def do_GET(self) -> None:
            self._pass_on(b"")

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["content-length"])))

        def _pass_on(self, body: bytes) -> None:
            if not self.path.startswith(f"{prefix}/"):
                refused.append(self.path)
                self.send_error(404)
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_A_HOP}
            url = server + self.path.removeprefix(prefix)
            reply = httpx.request(self.command, url, content=body, headers=headers, timeout=60)
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name not in _OF_A_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}{prefix}", refused
        proxy.shutdown()
        thread.join()
