"""An engine made of engines: one for each device, each in a process of its own, behind one queue.

A batch goes to the device with the most free streams. The death of a process costs the batches that it ran; the other
devices go on, and the model is down only while all of them are. Without `--devices` there is one process.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from socket import socket

import numpy as np

from bei import wire
from bei.batching import is_brief
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch, EngineFacts
from bei.engines.devices import ANY, Device, Machine
from bei.engines.interpreters import Interpreters
from bei.engines.isolated import Child, EngineProcess
from bei.engines.messages import RESULTS, Failure, Load
from bei.errors import ENDING, Ended, EngineDied, EngineFailed, SetupError
from bei.metrics import Metrics, ModelMetrics
from bei.settings import Settings
from bei.settings.devices import kind_of

log = logging.getLogger("bei")

_OF_A_DEVICE = ("device", "reason", "streams")  # facts in which devices may differ


class Replicas:
    """`fault` says why no batch can run now. `run` waits until a batch can run, or raises if none ever will. `on_fault`
    is called when `fault` changes."""

    facts: EngineFacts
    fault: str | None

    def __init__(
        self,
        settings: Settings,
        interpreters: Interpreters,
        metrics: ModelMetrics | None = None,
        machine: Machine | None = None,
    ):
        """Starts the processes, so that their imports run while the server starts; call `load` next. Without `metrics`
        it has metrics of its own. Raises SetupError for devices that the machine does not have."""
        metrics = metrics or Metrics().of_model("")
        self._settings, self.fault = settings, None
        self.on_fault: Callable[[], None] = lambda: None
        self._changed, self._telling = threading.Condition(), threading.Lock()
        self._closing = False
        self._processes = [
            EngineProcess(
                device, interpreters, settings.max_engine_restarts, metrics.of_device(device.name), self._changed
            )
            for device in (machine or Machine()).devices(settings.devices)
        ]

    def load(self, checkpoint: Checkpoint) -> "Replicas":
        """Blocking. The first process makes what the others find in the cache. Raises SetupError."""
        first, *others = self._processes
        try:
            facts = [self._load(checkpoint, first)]
            with ThreadPoolExecutor(max(1, len(others)), "engine-load") as pool:
                facts += pool.map(partial(self._load, checkpoint), others)
            self._streams = [own.streams for own in facts]
            self.facts = _of_all([process.device for process in self._processes], facts)
            if self.facts.devices:
                log.info("%d devices: %s; %d batches at once", len(facts), self.facts.devices, self.facts.streams)
        except BaseException:
            self.abandon()
            raise
        for process in self._processes:
            process.watch(self._tell_fault)
        return self

    def _load(self, checkpoint: Checkpoint, process: EngineProcess) -> EngineFacts:
        device = process.device
        settings = self._settings.model_copy(update={"devices": None if device is ANY else device.name})
        to_load = Load(
            settings=settings.redacted().model_dump_json(),
            folder=str(checkpoint.folder),
            revision=checkpoint.revision,
            log_level=log.getEffectiveLevel(),
        )
        try:
            return process.load(to_load)
        except SetupError as exc:
            raise SetupError(exc.message if device is ANY else f"{device.name}: {exc.message}") from None

    def run(self, batch: Batch) -> np.ndarray:
        """Raises EngineFailed, EngineDied if the process ended meanwhile, or Ended if it was told to."""
        process, child, channel = self._hand_over(batch)
        started = time.monotonic()
        try:
            (result,) = RESULTS.receive(channel)
        except OSError:
            channel.close()
            if self._closing:
                raise Ended(ENDING) from None
            raise EngineDied("the engine's process died while this ran") from None
        except wire.UnknownMessage as exc:
            result = Failure(str(exc))
        process.metrics.observe_batch(time.monotonic() - started)
        with self._changed:
            child.release(channel)
            self._changed.notify_all()
        if isinstance(result, Failure):
            raise EngineFailed(result.message)
        return result.rows

    def allow(self, threads: int) -> None:
        """Bounds the threads that all devices may run now; each has its part of them."""
        for process, own in zip(self._processes, self._streams, strict=True):
            process.child.allowance.allow(max(1, threads * own // self.facts.streams))

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of its processes."""
        return tuple(process.child.pid for process in self._processes)

    def close(self) -> None:
        with self._changed:
            self._closing, self.fault = True, ENDING
            self._changed.notify_all()
        for process in self._processes:
            process.disconnect()
        for process in self._processes:
            process.end()

    def abandon(self) -> None:
        """Ends the processes, which have loaded nothing: another engine serves the model."""
        for process in self._processes:
            process.end(farewell=0)

    def _hand_over(self, batch: Batch) -> tuple[EngineProcess, Child, socket]:
        while True:
            process, child, channel = self._free_channel(for_brief=is_brief(len(batch.input_ids)))
            try:
                wire.send(channel, batch)
                return process, child, channel
            except OSError:  # the process died before it had the batch, which another one may run
                channel.close()

    def _free_channel(self, *, for_brief: bool) -> tuple[EngineProcess, Child, socket]:
        """A free channel of the process with the most free streams."""

        def free() -> EngineProcess | None:
            able = (one for one in self._processes if one.child.channels(for_brief=for_brief))
            return max(able, key=lambda one: len(one.child.free), default=None)

        with self._changed:
            while (process := free()) is None or self._closing:
                if self._closing:
                    raise Ended(ENDING)
                if all(one.is_down for one in self._processes):
                    raise EngineFailed(self.fault or "the engine died")
                self._changed.wait()
            return process, process.child, process.child.channels(for_brief=for_brief).pop()

    def _tell_fault(self) -> None:
        """The model is down while all devices are; a device that comes back is worth waiting for."""
        with self._telling:
            with self._changed:
                faults = [one.fault for one in self._processes if not one.is_down]
                faults = faults or [one.fault for one in self._processes]
                found = ENDING if self._closing else None if None in faults else faults[0]
                if found == self.fault:
                    return
                self.fault = found
            self.on_fault()


def _of_all(devices: Sequence[Device], facts: Sequence[EngineFacts]) -> EngineFacts:
    """Those of one engine that has the streams of all. Raises SetupError unless the devices agree in the rest."""
    first = facts[0]
    if devices[0] is ANY:
        return first
    for device, own in zip(devices, facts, strict=True):
        for name, value in asdict(own).items():
            other = getattr(first, name)
            if name not in _OF_A_DEVICE and value != other:
                raise SetupError(
                    f"devices {device.name} and {devices[0].name} differ in {name}: {value} and {other}; serve the "
                    "model on devices of one kind"
                )
        if kind_of(device.name) == "cuda" and own.processors:
            raise SetupError(f"devices {device.name}: engine {own.name} runs on {own.device} in its place")
    return replace(
        first,
        device=f"{', '.join(device.name for device in devices)}: {'; '.join(dict.fromkeys(f.device for f in facts))}",
        streams=sum(own.streams for own in facts),
        devices=",".join(device.name for device in devices),
    )
