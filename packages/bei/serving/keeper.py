"""Loads and unloads the models of a server: at its start, for requests, for its operator, and within its limits."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

from bei import logs
from bei.errors import Error, Expired, SetupError
from bei.serving.loading import Loading
from bei.serving.service import Service
from bei.settings import Settings

log = logging.getLogger("bei")

_LOOK = 0.25  # the pause between looks for idle models, as a share of the time after which they are unloaded
_LONGEST_LOOK = 10.0  # seconds


class Audience(Protocol):
    """The workers of a server, who have to know which models are loaded."""

    def added(self, service: Service) -> None:
        """A model will take over; it is read."""

    def opened(self, service: Service) -> None:
        """A model is loaded."""

    def failed(self, service: Service, fault: str) -> None:
        """A model could not be loaded."""

    def ending(self, service: Service, *, is_gone: bool) -> None:
        """A model ends; waits until no other process uses it. `is_gone`: it is not served any more."""

    def replaced(self, services: Sequence[Service]) -> None:
        """These models are served from now on."""


class Nobody:
    """The audience of a server that answers in its one process."""

    def added(self, service: Service) -> None: ...

    def opened(self, service: Service) -> None: ...

    def failed(self, service: Service, fault: str) -> None: ...

    def ending(self, service: Service, *, is_gone: bool) -> None: ...

    def replaced(self, services: Sequence[Service]) -> None: ...


class Keeper:
    """Of the models that `services` returns. Those that it replaces or removes are loaded no more."""

    def __init__(self, settings: Settings, services: Callable[[], Sequence[Service]]):
        self._services, self._budget = services, settings.memory_budget
        self.audience: Audience = Nobody()
        self._drain_seconds, self._most = settings.drain_seconds, settings.max_concurrent_requests
        # Held while a model is loaded or unloaded; the first one before any of a model.
        self._turn = nullcontext() if self._budget is None else threading.Lock()
        self._locks: dict[Service, threading.Lock] = {}
        self._loadings: dict[Service, Loading] = {}
        self._sizes: dict[Service, int] = {}
        """The bytes of models that were loaded once."""
        self._beside: list[Service] = []
        """Models that are loaded to take over."""
        self._idle: threading.Thread | None = None
        self.started = threading.Event()
        self._closing = threading.Event()

    def start(self) -> None:
        """Loads the models that are not lazy, in their order, as far as there is memory for them. Blocking. Raises
        SetupError."""
        for service in self._services():
            with logs.of_model(service.name):
                self._start(service)
        self.watch()

    def _start(self, service: Service) -> None:
        if service.settings.lazy or not self._has_room(service):
            service.defer()
        else:
            service.load()
            self._keep_if_it_fits(service)

    def begin(self, service: Service) -> None:
        """Loads a model that will take over, or makes ready that a request loads it. Blocking. Raises SetupError."""
        if service.settings.lazy:
            service.defer()
            self.audience.added(service)
            return
        with self._turn, self._lock(service), logs.of_model(service.name):
            self._beside.append(service)
            service.read()
            self._make_room(service)
            service.load()
            self._measure(service)
            self.audience.added(service)
            self.audience.opened(service)

    def drop(self, service: Service) -> None:
        """Ends a model that is served no more, once the requests that hold it are answered. Blocking."""
        with self._lock(service), logs.of_model(service.name):
            self.audience.ending(service, is_gone=True)
            service.unload(self._drain_seconds)
        if service in self._beside:
            self._beside.remove(service)
        self._forget(service)
        settle_metrics(service, self._services())

    def _forget(self, service: Service) -> None:
        """Those who wait for a model that is served no more find another one of its name, or none."""
        if loading := self._loadings.pop(service, None):
            loading.finish(None)
        self._locks.pop(service, None)
        self._sizes.pop(service, None)

    def _has_room(self, service: Service) -> bool:
        if self._budget is None:
            return True
        service.read()
        has_room = self._used() + service.stored_bytes <= self._budget
        if not has_room:
            log.info("not loaded before a request for it, because of memory_budget")
        return has_room

    def _keep_if_it_fits(self, service: Service) -> None:
        try:
            self._measure(service)
        except SetupError as exc:
            log.error("%s", exc)
            service.unload(self._drain_seconds)
        else:
            self.audience.opened(service)

    async def wait(self, service: Service, deadline: float, *, at_once: bool = False) -> bool:
        """Loads a model that does not answer; returns whether the caller holds a lease of it then. Raises NotReady,
        Overloaded or Expired, as Loading.wait does."""
        loading = self._loading(service)
        if not loading.is_running and (self._closing.is_set() or service.state in ("loading", "failed")):
            raise service.refusal()
        return await loading.wait(deadline, at_once=at_once)

    def _loading(self, service: Service) -> Loading:
        found = self._loadings.get(service)
        if found is None:
            found = Loading(service.name, service.leases, self._most, lambda: self.want(service))
        return self._loadings.setdefault(service, found)

    def want(self, service: Service) -> None:
        """Begins a load in a thread."""
        threading.Thread(target=self._load, args=(service,), name="load", daemon=True).start()

    def _lock(self, service: Service) -> threading.Lock:
        return self._locks.setdefault(service, threading.Lock())

    def _load(self, service: Service) -> None:
        """Blocking."""
        with self._turn, self._lock(service), logs.of_model(service.name):
            fault: str | None = None
            try:
                if not service.leases.is_open and service in self._services() and not self._closing.is_set():
                    self._load_now(service)
            except Error as exc:
                fault = exc.message
            except Exception as exc:
                log.exception("the model cannot be loaded")
                fault = type(exc).__name__
            self._loading(service).finish(fault)
            if fault is not None:
                service.model_metrics.set_ready(False)
                self.audience.failed(service, fault)
        if service not in self._services():
            self._forget(service)

    def _load_now(self, service: Service) -> None:
        """Raises SetupError."""
        self._make_room(service)
        started = time.monotonic()
        log.info("loading, for a request")
        try:
            service.load()
            self._measure(service)
        except BaseException:
            service.unload(self._drain_seconds)
            raise
        self.audience.opened(service)
        log.info("loaded in %.2f s", time.monotonic() - started)

    async def unload(self, service: Service, deadline: float) -> None:
        """Ends a model for the operator. Its next request loads it again. Raises Expired, but ends it then, too."""
        if service.loaded is None and service.state == "loading":
            raise service.refusal()
        ending = asyncio.get_running_loop().run_in_executor(None, self.end, service, "as asked")
        try:
            async with asyncio.timeout(None if deadline == float("inf") else max(0.0, deadline - time.monotonic())):
                await asyncio.shield(ending)
        except TimeoutError:
            raise Expired("the request's deadline passed while its model was unloaded") from None

    def end(self, service: Service, reason: str) -> None:
        """Ends a model once the requests that hold it are answered. Its next request loads it again. Blocking."""
        with self._lock(service):
            if service.loaded is not None:
                self._end(service, reason)

    def _end(self, service: Service, reason: str) -> None:
        with logs.of_model(service.name):
            log.info("unloading, %s", reason)
            self.audience.ending(service, is_gone=False)
            service.unload(self._drain_seconds)
            log.info("unloaded")

    # -- memory --------------------------------------------------------------------------------------------------------

    def _used(self) -> int:
        taking_over = [service for service in self._beside if service not in self._services()]
        return sum(service.memory() for service in (*self._services(), *taking_over))

    def _make_room(self, service: Service) -> None:
        """Unloads models until one more fits, as far as its size is known. Raises SetupError if it never fits."""
        if self._budget is None:
            return
        size = self._sizes.get(service, service.stored_bytes)
        if service in self._sizes:
            self._check_size(service)
        while self._used() + size > self._budget and self._unload_oldest(service):
            pass

    def _measure(self, service: Service) -> None:
        """Notes the size of a loaded model, and unloads others until all are within the budget. Raises SetupError if it
        does not fit."""
        if self._budget is None:
            return
        self._sizes[service] = service.memory()
        self._check_size(service)
        while self._used() > self._budget and self._unload_oldest(service):
            pass

    def _check_size(self, service: Service) -> None:
        size = self._sizes[service]
        if self._budget is not None and size > self._budget:
            raise SetupError(
                f"it takes {size / 1e6:.0f} MB, more than the memory_budget of {self._budget / 1e6:.0f} MB"
            )

    def _unload_oldest(self, besides: Service) -> bool:
        """Unloads the model that was used least recently, an idle one if there is any; false without another one."""
        loaded = [of for of in self._services() if of is not besides and of.loaded is not None]
        if not loaded:
            return False
        oldest = min(loaded, key=lambda of: (of.leases.count > 0, of.leases.last_use))
        self.end(oldest, f"to make room for {besides.name}")
        return True

    # -- time ----------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Unloads idle models from now on, where there are any that are to be."""
        if self._idle is None and self._shortest() < float("inf"):
            self._idle = threading.Thread(target=self._unload_idle, name="idle", daemon=True)
            self._idle.start()

    def _shortest(self) -> float:
        return min((of.settings.idle_unload or float("inf") for of in self._services()), default=float("inf"))

    def _unload_idle(self) -> None:
        while not self._closing.wait(min(_LOOK * self._shortest(), _LONGEST_LOOK)):
            for service in self._services():
                self._unload_if_idle(service)

    def _unload_if_idle(self, service: Service) -> None:
        seconds = service.settings.idle_unload
        if seconds is None or service.loaded is None:
            return
        with self._lock(service):
            if service.loaded is not None and service.leases.close_if_idle(seconds):
                self._end(service, f"no request for {seconds:g} s")

    def close(self) -> None:
        """Begins no more loads."""
        self._closing.set()


def settle_metrics(ended: Service, services: Sequence[Service]) -> None:
    """The states of a model that ended are those of the one that took over, or gone."""
    successors = [service for service in services if service.name == ended.name]
    for service in successors:
        service.observe()
    if not successors:
        ended.model_metrics.forget()
