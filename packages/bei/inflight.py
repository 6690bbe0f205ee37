"""The bytes that a process holds for requests in flight: bodies, rows and answers."""

import threading
from collections.abc import Callable
from contextvars import ContextVar

from bei.errors import Overloaded, TooLarge

_SMALL = 1 << 20  # bytes; a part of the limit is reserved for answers and bodies of at most this size
_FOR_SMALL = 0.25

_request: ContextVar["_Request | None"] = ContextVar("request", default=None)


class _Request:
    """The bytes of one request."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class _Scope:
    """A plain context manager, for speed: each request enters two."""

    __slots__ = ("_in_flight", "_own", "_token")

    def __init__(self, in_flight: "InFlight"):
        self._in_flight = in_flight

    def __enter__(self) -> None:
        self._own = None if _request.get() is not None else _Request()
        if self._own is not None:
            self._token = _request.set(self._own)

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            _request.reset(self._token)
            self._in_flight.end(self._own)


class InFlight:
    """Safe to use from several threads. Held bytes count for the request in whose scope they are, until it ends.
    `on_calm` is called whenever the total falls to a MiB or less."""

    def __init__(self, limit: int, on_calm: Callable[[], None] = lambda: None):
        self.limit, self.on_calm = limit, on_calm
        self.held = 0
        self._lock = threading.Lock()

    def request(self) -> "_Scope":
        """The scope of a request; within another scope, that one."""
        return _Scope(self)

    def has_room(self, size: int, whole: int) -> bool:
        """Whether there is room for `size` more bytes of something, of which `whole` have come."""
        own = _request.get()
        alone = own is not None and self.held == own.held
        return self.held + size <= (self.limit if alone else self._most(whole))

    def _most(self, size: int) -> int:
        """The limit on all bytes for something of this size."""
        return int(self.limit * (1 - _FOR_SMALL)) if size > _SMALL else self.limit

    def hold(self, size: int) -> None:
        """Holds bytes. A negative size releases them."""
        own = _request.get()
        if own is not None:
            self._add(size, own)

    def admit(self, size: int) -> None:
        """Holds the bytes that a request is going to make: rows and its answer. Raises TooLarge for a size that can
        never be held, and Overloaded for one that cannot be held now."""
        most = self.check(size)
        if self.held + size > most:
            raise Overloaded(f"requests in flight and their answers take more than {most} bytes")
        self.hold(size)

    def check(self, size: int) -> int:
        """The limit on all bytes for a request of such a size. Raises TooLarge for a size that can never be held."""
        most = self._most(size)
        if size > most:
            raise TooLarge(
                f"the answer would take about {size} bytes, more than {most}; send fewer or shorter texts in a request "
                "(max_bytes_in_flight)"
            )
        return most

    def end(self, own: _Request) -> None:
        """Releases all bytes of a request."""
        if own.held:
            self._add(-own.held, own)

    def _add(self, size: int, own: _Request) -> None:
        with self._lock:
            before = self.held
            self.held += size
            own.held += size
            calmed = self.held <= _SMALL < before
        if calmed:
            self.on_calm()
