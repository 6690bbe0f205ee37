"""A process that makes an engine and runs its batches, and that is replaced when it dies; the server goes on.

A crash in a kernel or a driver, or for want of memory, fails only the batches that were running. Batches and rows pass
through channels: sockets, one for each batch that may run at once (docs/design-notes.md, "A process for the engine").
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from bei import logs, processes, wire
from bei.engines.base import EngineFacts
from bei.engines.devices import Device
from bei.engines.interpreters import Interpreter, Interpreters
from bei.engines.messages import LOADED, Load, LogLine, Refusal
from bei.errors import SetupError, one_line
from bei.metrics import DeviceMetrics

log = logging.getLogger("bei")

_FAREWELL = 2.0  # seconds before an ending process is killed


class _DiedLoading(SetupError):
    """The process ended before it had an engine; `how` in words."""

    def __init__(self, how: str):
        super().__init__(f"the engine's process ended by {how} while it loaded")
        self.how = how


class EngineProcess:
    """The process of a device, then its successors. `fault` says why it runs no batch now; once it `is_down`, it never
    will again. These and the free channels of `child` are read and changed under the lock of `changed`."""

    def __init__(
        self,
        device: Device,
        interpreters: Interpreters,
        max_restarts: int,
        metrics: DeviceMetrics,
        changed: threading.Condition,
    ):
        """Starts it, so that its imports run while the server starts; call `load` next. Raises OSError."""
        self.device, self.metrics = device, metrics
        self.fault: str | None = None
        self.is_down = False
        self._restarts = processes.Restarts(max_restarts)
        self._changed, self._closing = changed, False
        self._watching: threading.Thread | None = None
        self._interpreters = interpreters
        self.child = Child(interpreters.take(device))

    def load(self, to_load: Load) -> EngineFacts:
        """Blocking. Raises SetupError."""
        self._to_load = to_load
        return self._load(self.child)

    def watch(self, on_fault: Callable[[], None]) -> None:
        """From now on replaces it whenever it ends. `on_fault` is called when `fault` changes."""
        self._on_fault = on_fault
        self._watching = threading.Thread(target=self._watch, name=f"engine-watch {self.device.name}", daemon=True)
        self._watching.start()

    def disconnect(self) -> None:
        """Tells it to end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.child.disconnect()

    def end(self, farewell: float = _FAREWELL) -> None:
        """Waits for its end, after `farewell` seconds by force."""
        if self._watching is not None:
            self._watching.join()
        self.child.end(farewell)
        self.metrics.observe_end()

    def _load(self, child: "Child") -> EngineFacts:
        with logs.of_model(self.metrics.model, self.device.name):
            facts = child.load(self._to_load)
        self.metrics.observe_start(facts.streams)
        return facts

    def _watch(self) -> None:
        logs.about_model(self.metrics.model, self.device.name)
        while not self.is_down:
            self.child.listen()
            how: str | None = self.child.end()
            lived = time.monotonic() - self.child.ready_at
            while how is not None and not self.is_down:
                how, lived = self._after_death(how, lived), 0.0

    def _after_death(self, how: str, lived: float) -> str | None:
        """Replaces the process, unless it has died too often in a row. Returns how its successor died, too, before it
        had an engine; None if it has one, or if there is no successor."""
        pause = self._restarts.pause(lived)
        if not self._closing:
            self.metrics.observe_death(restarts=pause is not None)
        if pause is None or self._closing:
            times = self._restarts.in_a_row
            self._give_up(f"the engine died {times} times in a row, at last by {how}; restart the server")
            return None
        log.error("the engine's process died by %s; starting another", how)
        self._set_fault("the engine is restarting")
        try:
            return self._replace(pause)
        except SetupError as exc:
            self._give_up(f"the engine died, and does not start again: {exc.message}")
            return None

    def _replace(self, pause: float) -> str | None:
        """As `_after_death`. Raises SetupError with the refusal of the process."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause)
        started = time.monotonic()
        try:
            child = Child(self._interpreters.take(self.device))
        except OSError as exc:
            return f"{one_line(exc)} at its start"
        with self._changed:
            self.child = child
            if self._closing:
                child.disconnect()
        try:
            self._load(child)
        except _DiedLoading as exc:
            return f"{exc.how} while it loaded"
        self._set_fault(None)
        log.info("the engine is back after %.2f s", time.monotonic() - started)
        return None

    def _give_up(self, fault: str) -> None:
        with self._changed:
            self.is_down = True
        if not self._closing:
            log.error("%s", fault)
            self._set_fault(fault)

    def _set_fault(self, fault: str | None) -> None:
        with self._changed:
            self.fault = fault
            self._changed.notify_all()
        self._on_fault()


class Child:
    """One process. `free`: the channels that are not in use; `free_brief`: the channel for brief batches, if free.
    `allowance`: that of its engine, in this process and the next."""

    def __init__(self, interpreter: Interpreter):
        self._interpreter, self.allowance = interpreter, interpreter.allowance
        self._process, self._control = interpreter.process, interpreter.control
        self.ready_at = 0.0
        self.free: list[socket.socket] = []
        self.free_brief: list[socket.socket] = []
        self._brief: socket.socket | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, load: Load) -> EngineFacts:
        """The facts of the engine that the process has made. Raises SetupError with the process's message."""
        try:
            wire.send(self._control, replace(load, allowance=self._interpreter.descriptor))
            made = self._next()
            if isinstance(made, EngineFacts):
                self._open_channels(made.streams, made.has_brief_slot)
        except OSError:
            raise _DiedLoading(self.end()) from None
        except wire.UnknownMessage as exc:
            made = Refusal(f"the engine's process sent {one_line(exc)}")
        if isinstance(made, Refusal):
            self.end()
            raise SetupError(made.message)
        self.ready_at = time.monotonic()
        return made

    def _open_channels(self, streams: int, has_brief_slot: bool) -> None:
        pairs = [socket.socketpair() for _ in range(streams + has_brief_slot)]
        socket.send_fds(self._control, [b"."], [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        channels = [ours for ours, _ in pairs]
        self._brief = channels[streams] if has_brief_slot else None
        self.free, self.free_brief = channels[:streams], channels[streams:]

    def listen(self) -> None:
        """Log its lines until it ends."""
        try:
            self._next()
        except OSError:
            return
        except wire.UnknownMessage as exc:
            log.error("the engine's process sent %s", exc)

    def channels(self, *, for_brief: bool) -> list[socket.socket]:
        """The free channels for a batch: that for brief batches if it is one and the channel is free."""
        return self.free_brief if for_brief and self.free_brief else self.free

    def release(self, channel: socket.socket) -> None:
        if self._process.returncode is not None:
            channel.close()
        elif channel is self._brief:
            self.free_brief.append(channel)
        else:
            self.free.append(channel)

    def disconnect(self) -> None:
        """Tell it to end."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def end(self, farewell: float = _FAREWELL) -> str:
        """End the process if it runs, after `farewell` seconds by force; returns how it ended, in words."""
        self.disconnect()
        status = processes.end(self._process, farewell)
        free, self.free, self.free_brief = [*self.free, *self.free_brief], [], []
        self._interpreter.close()
        for channel in free:
            channel.close()
        return processes.how(status)

    def _next(self) -> EngineFacts | Refusal:
        """The next message that is not a log line; logs those before it."""
        while True:
            (message,) = LOADED.receive(self._control)
            if not isinstance(message, LogLine):
                return message
            log.log(message.level, "%s", message.text)
