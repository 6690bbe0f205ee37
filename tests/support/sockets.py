"""Clients of a Running server that write HTTP by hand."""

import socket
import time
from contextlib import suppress
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.support.running import LIMIT, Running
from tests.support.waiting import wait_until


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=LIMIT)


def wait_until_read(*clients: socket.socket) -> None:
    """The server has read all that these clients have sent: no byte waits in a socket of either side."""
    ports = {f"{client.getsockname()[1]:04X}" for client in clients}

    def waiting() -> list[str]:
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        queues = ((row[1], row[4].partition(":")[0]) if row[1][-4:] in ports else (row[2], row[4][-8:]) for row in rows)
        return [place for place, queue in queues if place[-4:] in ports and int(queue, 16)]

    wait_until(lambda: not waiting())


def is_open(sock: socket.socket) -> bool:
    """Whether neither side has closed the connection."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1  # TCP_ESTABLISHED


def everything(sock: socket.socket) -> bytes:
    """The bytes until the server closes."""
    received = b""
    try:
        while part := sock.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


class Http2:
    """One HTTP/2 connection, by hand."""

    def __init__(self, running: Running, window: int | None = None):
        self.sock = connect(running)
        self.machine = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.machine.initiate_connection()
        if window is not None:
            self.machine.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.send()

    def send(self) -> None:
        self.sock.sendall(self.machine.data_to_send())

    def begin(self, path: str, end: bool = False, **headers: str) -> int:
        stream = self.machine.get_next_available_stream_id()
        pseudo = {":method": "POST", ":path": path, ":scheme": "http", ":authority": "localhost"}
        self.machine.send_headers(stream, list({**pseudo, **headers}.items()), end_stream=end)
        self.send()
        return stream

    def events(
        self, seconds: float = LIMIT, until: type[h2.events.Event] | tuple[type[h2.events.Event], ...] = ()
    ) -> list[h2.events.Event]:
        """The events until one of these kinds, until the server closes, or until time is over."""
        found, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                return [*found, h2.events.ConnectionTerminated()]
            found += self.machine.receive_data(data)
            with suppress(ConnectionError):  # the next read shows that the server has closed
                self.send()
            if any(isinstance(event, until) for event in found):
                break
        return found

    def status(self, events: list[h2.events.Event]) -> list[str]:
        return [dict(event.headers)[":status"] for event in events if isinstance(event, h2.events.ResponseReceived)]
