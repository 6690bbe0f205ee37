"""SIGHUP. A thread of its own acts upon it, for a signal's handler may run at any time."""

import logging
import queue
import signal
import threading
from collections.abc import Callable

log = logging.getLogger("bei")


def handle(act: Callable[[], None]) -> None:
    """From now on calls `act` for each SIGHUP; for several that come while it runs, once. For the main thread only."""
    signals: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run() -> None:
        while True:
            signals.get()
            while not signals.empty():
                signals.get()
            try:
                act()
            except Exception:
                log.exception("SIGHUP")

    signal.signal(signal.SIGHUP, lambda number, frame: signals.put(None))
    threading.Thread(target=run, name="hangups", daemon=True).start()
