"""Limits of both protocols: the waiting times for a client, and the number of its headers."""

import asyncio

KEEP_ALIVE_SECONDS = 75  # clients keep idle connections for 30 s and proxies for 60 s: the server must not close first
REQUEST_HEAD_SECONDS = 20.0  # from the first byte of a request head to its last
READING_SECONDS = 30.0  # to read any answer; a long one has one second more for each READING_RATE bytes
READING_RATE = 4096
MOST_READING_SECONDS = 600.0  # for an answer of any size
WATCH_AFTER = 0.25  # seconds until a call is watched: its client may leave before the answer
MAX_HEADERS = 128
ABORT = "bei.abort"  # in a scope's extensions: a function that ends the connection at once


class WriteTimeout:
    """Ends a connection whose client does not read: of the bytes in its buffer, a minimum must go each second."""

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
