"""The bodies of all calls, with bounds on each, on all together, and on the time that they take to arrive."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from bei.api import Call
from bei.errors import ClientGone, Error, Overloaded, TooLarge, TooSlow
from bei.inflight import InFlight

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

SECONDS = 30.0  # for any body; a long one has one second more for each RATE bytes received
RATE = 4096
MOST_SECONDS = 600.0  # for a body of any size, because it occupies memory meanwhile
_DRAIN_SECONDS = 10.0


class BodyReader:
    """Reads bodies of up to `limit` bytes each, and as many at once as the bytes in flight allow."""

    def __init__(self, limit: int, in_flight: InFlight):
        self._limit, self._in_flight = limit, in_flight

    async def read(self, call: Call, receive: Receive, *, wanted: bool) -> bytearray:
        """The body, which counts as in flight until the request ends; empty if it is not `wanted`. Raises TooLarge or
        Overloaded once the client has stopped sending or has sent twice the limit; TooSlow; or ClientGone when the
        client left."""
        refusal = self._refusal(call.stated_length, 0)
        if refusal and "expect" in call.headers:  # the client waits for our answer before it sends
            raise refusal
        body = bytearray()  # a list of small parts would fragment the heap
        size, now = 0, asyncio.get_running_loop().time
        started = now()
        try:
            async with asyncio.timeout_at(started + SECONDS) as patience:
                more = True
                while more:
                    chunk, more = _part(await receive())
                    size += len(chunk)
                    refusal = refusal or self._refusal(size, len(chunk) if wanted else 0)
                    if refusal:
                        # A client that sends without being read never reads our answer, so we read on, up to a bound.
                        self._free(body)
                        if size > 2 * self._limit or now() > started + _DRAIN_SECONDS:
                            raise refusal
                    elif wanted:
                        body += chunk
                        self._in_flight.hold(len(chunk))
                    if size > RATE:
                        patience.reschedule(started + min(SECONDS + size / RATE, MOST_SECONDS))
            if refusal:
                raise refusal
        except BaseException as exc:
            self._free(body)
            if isinstance(exc, TimeoutError):
                raise TooSlow(
                    f"the body came more slowly than {RATE} bytes a second, or took more than {MOST_SECONDS:g} s"
                ) from None
            raise
        return body

    async def stream(self, call: Call, receive: Receive) -> AsyncIterator[bytes]:
        """The body in the parts in which it comes. None is kept, so it may have any size, at RATE bytes a second.
        Raises TooSlow or ClientGone."""
        size, more, now = 0, True, asyncio.get_running_loop().time
        started = now()
        while more:
            try:
                async with asyncio.timeout_at(started + SECONDS + size / RATE):
                    part, more = _part(await receive())
            except TimeoutError:
                raise TooSlow(f"the body came more slowly than {RATE} bytes a second") from None
            size += len(part)
            yield part

    async def drain(self, receive: Receive) -> None:
        """Reads the rest of a body, up to a bound. Raises ClientGone."""
        size, more = 0, True
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while more and size <= self._limit:
                    part, more = _part(await receive())
                    size += len(part)

    def _free(self, body: bytearray) -> None:
        self._in_flight.hold(-len(body))
        body.clear()

    def _refusal(self, size: int, more: int) -> Error | None:
        """The refusal of a body of `size`, of which `more` bytes are to be kept; None where there is room."""
        if size > self._limit:
            return TooLarge(f"the body is larger than {self._limit} bytes")
        if not self._in_flight.has_room(more, size):
            return Overloaded(f"requests in flight and their answers take more than {self._in_flight.limit} bytes")
        return None


def _part(message: Message) -> tuple[bytes, bool]:
    """A part of a body, and whether more will come. Raises ClientGone."""
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left while it was sending")
    return message.get("body", b""), message.get("more_body", False)
