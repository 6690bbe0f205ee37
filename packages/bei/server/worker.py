"""An HTTP worker: it reads, tokenizes and answers. The engines, their queues, and the decisions when a model is loaded
are in the server's process, which tells a worker through its control channel (server/control.py)."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bei import logs, memory, wire
from bei.checkpoint.load import read_for
from bei.engines.base import EngineFacts
from bei.errors import Error, Expired
from bei.metrics import Metrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.server import hosting
from bei.server.control import (
    TO_WORKER,
    Ended,
    Model,
    Opened,
    Served,
    Unloaded,
    Unwanted,
    Used,
    Wanted,
)
from bei.serving.keeper import settle_metrics
from bei.serving.loading import Loading
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings

log = logging.getLogger("bei")

_TELL_SECONDS = 1.0  # between messages about the models that are used
_LOOK_SECONDS = 0.02


def work(listener: socket.socket, control: socket.socket) -> int:
    """The status of a worker, once it ends."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the server
    setup, *models = TO_WORKER.receive(control)
    keys = {"api_key": tuple(map(SecretStr, setup.keys))}
    settings = [_settings(model, keys) for model in models]
    hosting.start_logs(settings[0], setup.log_level)
    with hosting.tracer_of(settings[0]) as tracer:
        registry = Registry.of(settings, Metrics(Path(setup.metrics_folder)), tracer)
        numbers = [model.number for model in models]
        manager = _Manager(registry, control, dict(zip(numbers, registry.services, strict=True)), keys)
        registry.loader = manager
        if setup.is_late:  # others answer meanwhile
            manager.start()
        status = hosting.answer_calls(registry, listener, (lambda: None) if setup.is_late else manager.start)
        registry.close()
        return status


def _settings(model: Model, keys: Mapping[str, tuple[SecretStr, ...]]) -> Settings:
    return Settings.model_validate_json(model.settings).model_copy(update=keys)


class _Manager:
    """The worker's side of its control channel; for the registry it is what a Keeper is in the server's process."""

    def __init__(
        self,
        registry: Registry,
        control: socket.socket,
        services: dict[int, Service],
        keys: Mapping[str, tuple[SecretStr, ...]],
    ):
        self._registry, self._control, self._services, self._keys = registry, control, services, keys
        self._drain_seconds = registry.settings.drain_seconds
        self._most = registry.settings.max_concurrent_requests
        self._sending = threading.Lock()
        self._loadings: dict[Service, Loading] = {}
        # A thread for each model, which acts upon what is said about it in order.
        self._threads: dict[Service, ThreadPoolExecutor] = {}
        self._ends = Counter[int]()
        self._closing = False
        self.started = threading.Event()

    def start(self) -> None:
        """Takes the models over that the server has. Blocking, until all first workers have them."""
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        self.started.wait()
        memory.settle()
        threading.Thread(target=self._tell_used, name="used", daemon=True).start()

    # -- for the registry ----------------------------------------------------------------------------------------------

    async def wait(self, service: Service, deadline: float, *, at_once: bool = False) -> bool:
        """As Keeper.wait."""
        loading = self._loading(service)
        if self._closing or not self.started.is_set():
            raise service.refusal()
        return await loading.wait(deadline, at_once=at_once)

    async def unload(self, service: Service, deadline: float) -> None:
        """As Keeper.unload."""
        number = self._number(service)
        if number is None:
            return
        before = self._ends[number]
        self._send(Unwanted(number))
        while self._ends[number] == before and number in self._services:
            if time.monotonic() > deadline:
                raise Expired("the request's deadline passed while its model was unloaded")
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Nobody waits for a load any more."""
        self._closing = True
        for loading in list(self._loadings.values()):
            if loading.is_running:
                loading.finish("the server is draining")

    # -- for the server ------------------------------------------------------------------------------------------------

    def _number(self, service: Service) -> int | None:
        """None for a model that is served no more."""
        return next((number for number, of in list(self._services.items()) if of is service), None)

    def _loading(self, service: Service) -> Loading:
        found = self._loadings.get(service)
        if found is None:
            found = Loading(service.name, service.leases, self._most, lambda: self._want(service))
        return self._loadings.setdefault(service, found)

    def _want(self, service: Service) -> None:
        number = self._number(service)
        if number is None:
            self._loadings.pop(service).finish(None)
        else:
            self._send(Wanted(number))

    def _send(self, message: Wanted | Unwanted | Used) -> None:
        with self._sending, suppress(OSError):  # the server is gone, and this process ends
            wire.send(self._control, message)

    def _tell_used(self) -> None:
        told = time.monotonic()
        while not self._closing:
            time.sleep(_TELL_SECONDS)
            since, told = told, time.monotonic()
            used = [
                number
                for number, service in list(self._services.items())
                if service.leases.count or service.leases.last_use > since
            ]
            if used:
                self._send(Used(used))

    def _listen(self) -> None:
        try:
            while True:
                self._take(*TO_WORKER.receive(self._control))
        except (OSError, wire.UnknownMessage) as exc:
            if isinstance(exc, wire.UnknownMessage):
                log.error("the server sent %s", exc)
            os._exit(1 if self.started.is_set() else 0)  # a server that refused to start has said why

    def _take(self, message: Any, *facts: EngineFacts) -> None:
        match message:
            case Model():
                self._services[message.number] = self._registry.make(_settings(message, self._keys))
            case Opened():
                _, (channel,), _, _ = socket.recv_fds(self._control, 1, 1)
                self._do(message.number, self._open, message, facts[0], socket.socket(fileno=channel))
            case Unloaded():
                self._do(message.number, self._end, message)
            case Served():
                self._serve(message.numbers)
            case Ended():
                self._ends[message.number] += 1

    def _do(self, number: int, act: Callable[..., None], *arguments: object) -> None:
        service = self._services[number]
        if service not in self._threads:
            self._threads[service] = ThreadPoolExecutor(1, "model")
        self._threads[service].submit(self._in_its_thread, act, service, *arguments)

    def _in_its_thread(self, act: Callable[..., None], service: Service, *arguments: object) -> None:
        logs.about_model(service.name)
        act(service, *arguments)

    def _open(self, service: Service, message: Opened, facts: EngineFacts, channel: socket.socket) -> None:
        engine = RemoteEngine(facts)
        scheduler = RemoteScheduler(channel, engine, on_loss=lambda: os._exit(1))
        fault = None
        try:
            checkpoint = read_for(service.settings, Path(message.folder), message.revision)
            service.join(checkpoint, engine, scheduler, scheduler.wait_until_open)
        except Exception as exc:
            if not isinstance(exc, Error) or not self.started.is_set():
                log.exception("a worker cannot serve %s", service.name)
                os._exit(1)
            fault = exc.message
            scheduler.close()
        self._loading(service).finish(fault)

    def _end(self, service: Service, message: Unloaded) -> None:
        if service.loaded is not None:
            service.unload(self._drain_seconds)
        elif service.checkpoint is None:
            service.defer(read_for(service.settings, Path(message.folder), message.revision))
        if message.fault is not None:
            service.model_metrics.set_ready(False)
            self._loading(service).finish(message.fault)
        if message.is_gone:
            settle_metrics(service, self._registry.services)
            self._forget(service)

    def _forget(self, service: Service) -> None:
        number = self._number(service)
        if number is not None:
            del self._services[number]
        if loading := self._loadings.pop(service, None):
            loading.finish(None)
        self._threads.pop(service).shutdown(wait=False)

    def _serve(self, numbers: list[int]) -> None:
        """Serves other models once they are ready here."""
        services = [self._services[number] for number in numbers]
        ended = [service for service in self._registry.services if service not in services]
        for service in services:
            if service not in self._registry.services or not self.started.is_set():
                self._threads[service].submit(lambda: None).result()
        self._registry.replace(services)
        for service in ended:  # those who wait for it resolve the name again
            self._loading(service).finish(None)
        self.started.set()
