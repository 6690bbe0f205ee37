"""An engine in a process of its own, which is replaced when it dies; the server goes on.

A crash in a kernel or a driver, or for want of memory, fails only the batches that were running. Batches and rows pass
through channels: sockets, one for each batch that may run at once (docs/design-notes.md, "A process for the engine").
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from bei import processes, wire
from bei.batching import is_brief
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch, EngineFacts
from bei.engines.messages import LOADED, RESULTS, Failure, Load, LogLine, Refusal
from bei.errors import EngineDied, EngineFailed, NotReady, SetupError, one_line
from bei.metrics import Metrics, ModelMetrics
from bei.settings import Settings

log = logging.getLogger("bei")

_FAREWELL = 2.0  # seconds before an ending process is killed


class IsolatedEngine:
    """`fault` says why no batch can run now. `run` waits until a batch can run, or raises if none ever will. `on_fault`
    is called when `fault` changes."""

    facts: EngineFacts

    def __init__(self, settings: Settings, metrics: ModelMetrics | None = None):
        """Starts the process, so that its imports run while the server starts; call `load` next. Without `metrics` it
        has metrics of its own."""
        self._settings, self._metrics = settings, metrics or Metrics().of_model("")
        self.fault: str | None = None
        self._changed = threading.Condition()
        self._closing = False
        self.on_fault: Callable[[], None] = lambda: None
        self._watching: threading.Thread | None = None
        self._child = _Child()

    def load(self, checkpoint: Checkpoint) -> "IsolatedEngine":
        """Blocking. Raises SetupError."""
        self._to_load = Load(
            settings=self._settings.redacted().model_dump_json(),
            folder=str(checkpoint.folder),
            revision=checkpoint.revision,
            log_level=log.getEffectiveLevel(),
        )
        self.facts = self._child.load(self._to_load)
        self._watching = threading.Thread(target=self._watch, name="engine-watch", daemon=True)
        self._watching.start()
        return self

    def run(self, batch: Batch) -> np.ndarray:
        """Raises EngineFailed, or EngineDied if the process ended meanwhile."""
        child, channel = self._hand_over(batch)
        try:
            (result,) = RESULTS.receive(channel)
        except OSError:
            channel.close()
            raise EngineDied("the engine's process died while this ran") from None
        except wire.UnknownMessage as exc:
            result = Failure(str(exc))
        with self._changed:
            child.release(channel)
            self._changed.notify_all()
        if isinstance(result, Failure):
            raise EngineFailed(result.message)
        return result.rows

    def close(self) -> None:
        with self._changed:
            self._closing, self.fault = True, "the server is shutting down"
            self._changed.notify_all()
        self._child.disconnect()
        if self._watching is not None:
            self._watching.join()
        self._child.end()

    def abandon(self) -> None:
        """Ends the process, which has loaded nothing: another engine serves the model."""
        self._child.end(farewell=0)

    def _hand_over(self, batch: Batch) -> tuple["_Child", socket.socket]:
        while True:
            child, channel = self._free_channel(is_brief(len(batch.input_ids)))
            try:
                wire.send(channel, batch)
                return child, channel
            except OSError:  # the process died before it had the batch: try its successor
                channel.close()

    def _free_channel(self, for_brief: bool) -> tuple["_Child", socket.socket]:
        """A free channel; for a brief batch preferably the one that is kept for brief batches."""

        def free() -> list[socket.socket]:
            child = self._child
            return child.free_brief if for_brief and child.free_brief else child.free

        with self._changed:
            self._changed.wait_for(lambda: free() or self._child.is_last or self._closing)
            if self._closing:
                raise NotReady(self.fault or "the server is shutting down")
            if self._child.is_last:
                raise EngineFailed(self.fault or "the engine died")
            return self._child, free().pop()

    def _watch(self) -> None:
        """Replaces the process whenever it ends, until it has ended too often in a row."""
        restarts = processes.Restarts(self._settings.max_engine_restarts)
        while True:
            self._child.listen()
            how, lived = self._child.end(), time.monotonic() - self._child.ready_at
            if self._closing:
                return
            pause = restarts.pause(lived)
            if pause is None:
                times = restarts.in_a_row
                self._give_up(f"the engine died {times} times in a row, at last by {how}; restart the server")
                return
            log.error("the engine's process died by %s; starting another", how)
            self._set_fault("the engine is restarting")
            self._metrics.engine_restarts.inc()
            time.sleep(pause)
            try:
                self._replace()
            except SetupError as exc:
                if not self._closing:
                    self._give_up(f"the engine died, and does not start again: {exc.message}")
                return

    def _replace(self) -> None:
        started = time.monotonic()
        with self._changed:
            if self._closing:
                return
            self._child = _Child()
        self._child.load(self._to_load)
        self._set_fault(None)
        log.info("the engine is back after %.2f s", time.monotonic() - started)

    def _give_up(self, fault: str) -> None:
        log.error("%s", fault)
        self._child.is_last = True
        self._set_fault(fault)

    def _set_fault(self, fault: str | None) -> None:
        with self._changed:
            self.fault = self.fault if self._closing else fault
            self._changed.notify_all()
        self.on_fault()


class _Child:
    """One process. `free`: the channels that are not in use; `free_brief`: the channel for brief batches, if free."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = processes.start("bei.engines.child", theirs.fileno(), pass_fds=[theirs.fileno()])
        self._control, self.is_last, self.ready_at = ours, False, 0.0
        self.free: list[socket.socket] = []
        self.free_brief: list[socket.socket] = []
        self._brief: socket.socket | None = None

    def load(self, load: Load) -> EngineFacts:
        """The facts of the engine that the process has made. Raises SetupError with the process's message."""
        try:
            wire.send(self._control, load)
            made = self._next()
            if isinstance(made, EngineFacts):
                self._open_channels(made.streams, made.has_brief_slot)
        except OSError:
            raise SetupError(f"the engine's process ended by {self.end()} while it loaded") from None
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
        self.free, self.free_brief = channels[:streams], channels[streams:]
        self._brief = channels[streams] if has_brief_slot else None

    def listen(self) -> None:
        """Log its lines until it ends."""
        try:
            self._next()
        except OSError:
            return
        except wire.UnknownMessage as exc:
            log.error("the engine's process sent %s", exc)

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
        for free in (self._control, *self.free, *self.free_brief):
            free.close()
        self.free.clear()
        self.free_brief.clear()
        return processes.how(status)

    def _next(self) -> EngineFacts | Refusal:
        """The next message that is not a log line; logs those before it."""
        while True:
            (message,) = LOADED.receive(self._control)
            if not isinstance(message, LogLine):
                return message
            log.log(message.level, "%s", message.text)
