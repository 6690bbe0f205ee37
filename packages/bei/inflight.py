"""Bytes that a process holds for requests in flight: their bodies, what the model makes of them, and their answers."""

import threading
from collections.abc import Callable
from contextvars import ContextVar

from bei.errors import Overloaded, TooLarge

_SMALL = 1 << 20  # bytes; whatever is held, a part of the limit is left to answers and bodies of no more
_FOR_SMALL = 0.25

_request: ContextVar["_Request | None"] = ContextVar("request", default=None)


class _Request:
    """What one request holds."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class _Scope:
    """A plain context manager: each request enters two."""

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
    """Safe to use from several threads. What is held counts for the request in whose scope it is, until that ends.
    `on_calm` is called whenever a MiB or less is held again after more was."""

    def __init__(self, limit: int, on_calm: Callable[[], None] = lambda: None):
        self.limit, self._on_calm = limit, on_calm
        self.held = 0
        self._lock = threading.Lock()

    def request(self) -> "_Scope":
        """The scope of a request; within another it is that one."""
        return _Scope(self)

    def has_room(self, size: int, whole: int) -> bool:
        """For more of something, of which `whole` has come. It may take all that nobody else needs."""
        own = _request.get()
        alone = own is not None and self.held == own.held
        return self.held + size <= (self.limit if alone else self._most(whole))

    def _most(self, size: int) -> int:
        """Bytes in all, with something of this size among them."""
        return int(self.limit * (1 - _FOR_SMALL)) if size > _SMALL else self.limit

    def hold(self, size: int) -> None:
        """A negative size gives back."""
        own = _request.get()
        if own is not None:
            self._add(size, own)

    def admit(self, size: int) -> None:
        """Hold what a request is going to make: rows, and its answer. Raises TooLarge for what can never be held, and
        Overloaded for what cannot now."""
        most = self.check(size)
        if self.held + size > most:
            raise Overloaded(f"requests in flight and their answers take more than {most} bytes")
        self.hold(size)

    def check(self, size: int) -> int:
        """The bytes that may be held with a request of such a size. Raises TooLarge for what can never be held."""
        most = self._most(size)
        if size > most:
            raise TooLarge(
                f"the answer would take about {size} bytes, more than {most}; send fewer or shorter texts in a request "
                "(max_bytes_in_flight)"
            )
        return most

    def end(self, own: _Request) -> None:
        """Give back all that a request holds."""
        if own.held:
            self._add(-own.held, own)

    def _add(self, size: int, own: _Request) -> None:
        with self._lock:
            before = self.held
            self.held += size
            own.held += size
            calmed = self.held <= _SMALL < before
        if calmed:
            self._on_calm()
