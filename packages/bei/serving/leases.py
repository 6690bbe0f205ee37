"""The requests that hold a model, so that it ends after them."""

import threading
import time


class Leases:
    """A model answers a request that holds a lease. Safe to use from several threads."""

    def __init__(self) -> None:
        # Each request takes the lock twice, so it is taken directly: a Condition's own methods are Python.
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._is_open = False
        self.count = 0
        self.last_use = time.monotonic()
        """When the last lease was given back, or the model became ready: a time.monotonic()."""

    def open(self) -> None:
        with self._lock:
            self._is_open, self.last_use = True, time.monotonic()

    @property
    def is_open(self) -> bool:
        return self._is_open

    def take(self) -> bool:
        """Whether the model may be used; then `give_back` follows."""
        with self._lock:
            self.count += self._is_open
            return self._is_open

    def give_back(self, *, is_use: bool = True) -> None:
        """`is_use` is false for a check, which does not count as a request."""
        with self._lock:
            self.count -= 1
            if is_use:
                self.last_use = time.monotonic()
            if not self._is_open:
                self._ended.notify_all()

    def touch(self) -> None:
        """Notes a use in another process."""
        with self._lock:
            self.last_use = time.monotonic()

    def close(self) -> None:
        """Gives no more of them."""
        with self._lock:
            self._is_open = False

    def close_if_idle(self, seconds: float) -> bool:
        """Gives no more of them if there are none, and there was none for so many seconds; returns whether it is so."""
        with self._lock:
            if self.count or time.monotonic() < self.last_use + seconds:
                return False
            self._is_open = False
            return True

    def wait(self, seconds: float) -> bool:
        """Whether all are given back, for which there are so many seconds."""
        with self._ended:
            return self._ended.wait_for(lambda: not self.count, seconds)
