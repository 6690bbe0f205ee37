"""The requests that wait until a model is loaded, and the pauses between loads that fail."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from bei.errors import Expired, NotReady, Overloaded
from bei.serving.leases import Leases

log = logging.getLogger("bei")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds after a load that failed, which double

_Waiting = tuple[asyncio.AbstractEventLoop, "asyncio.Future[bool]"]


class Loading:
    """Of one model, named `name`, whose `leases` its requests get. `begin` begins a load, and `finish` is called at its
    end."""

    def __init__(self, name: str, leases: Leases, most: int, begin: Callable[[], None]):
        """At most `most` requests wait."""
        self._name, self._leases, self._most, self._begin = name, leases, most, begin
        self._lock = threading.Lock()
        self.is_running = False
        self._fault: str | None = None
        self._failures = 0
        self._again_at = 0.0
        self._waiting: set[_Waiting] = set()

    async def wait(self, deadline: float, *, at_once: bool = False) -> bool:
        """Begins a load, unless one runs, and waits for its end. Returns whether the caller holds a lease then; without
        one the model was unloaded meanwhile. `deadline` is a time.monotonic().

        Raises NotReady with the reason if the load failed, or if one failed a short time ago and the next is not due;
        `at_once` does not wait until it is. Raises Overloaded if too many requests wait, and Expired."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            self._admit(at_once)
            self._waiting.add((loop, future))
            begins, self.is_running = not self.is_running, True
        if begins:
            self._begin()
        try:
            async with asyncio.timeout(None if deadline == float("inf") else max(0.0, deadline - time.monotonic())):
                return await future
        except (TimeoutError, asyncio.CancelledError) as exc:
            if future.done() and not future.cancelled() and future.exception() is None and future.result():
                self._leases.give_back(is_use=False)
            if isinstance(exc, TimeoutError):
                raise Expired("the request's deadline passed while its model was loaded") from None
            raise
        finally:
            with self._lock:
                self._waiting.discard((loop, future))

    def _admit(self, at_once: bool) -> None:
        pause = self._again_at - time.monotonic()
        if self._fault is not None and not self.is_running and not at_once and pause > 0:
            refusal = NotReady(self._fault)
            refusal.retry_after = pause
            raise refusal
        if len(self._waiting) >= self._most:
            raise Overloaded(f"{len(self._waiting)} requests wait until {self._name} is loaded")

    def finish(self, fault: str | None) -> None:
        """Tells those who wait that the model is loaded, or why it is not. Before that each gets a lease, so that the
        model cannot be unloaded before it has answered."""
        with self._lock:
            self.is_running = False
            self._note(fault)
            waiting, self._waiting = self._waiting, set()
        for loop, future in waiting:
            holds = fault is None and self._leases.take()
            try:
                loop.call_soon_threadsafe(self._settle, future, self._fault, holds)
            except RuntimeError:  # the loop is closed, and nobody waits
                self._settle_unheard(holds)

    def _note(self, fault: str | None) -> None:
        self._fault, self._failures = None, self._failures + 1 if fault else 0
        if fault is not None:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 1))
            self._fault, self._again_at = f"the model {self._name} cannot be loaded: {fault}", time.monotonic() + pause
            log.error("%s; a request in %.0f s or later tries again", self._fault, pause)

    def _settle(self, future: "asyncio.Future[bool]", fault: str | None, holds: bool) -> None:
        if future.done():
            self._settle_unheard(holds)
        elif fault is None:
            future.set_result(holds)
        else:
            future.set_exception(NotReady(fault))

    def _settle_unheard(self, holds: bool) -> None:
        if holds:
            self._leases.give_back(is_use=False)
