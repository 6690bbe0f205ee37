"""The models that one server serves, and the state that they share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from bei.engines.cpus import available_cpus
from bei.engines.interpreters import Interpreters
from bei.errors import ModelNotFound, NotReady, SetupError, short
from bei.jobs.store import Store
from bei.logs import Firsts
from bei.metrics import Metrics
from bei.serving.abilities import Ability, is_own
from bei.serving.keeper import Keeper
from bei.serving.model import ServedModel
from bei.serving.service import Service
from bei.settings import Settings
from bei.slots import Slots
from bei.tracing import Tracer

PLACEHOLDERS = frozenset(("", "model", "not-required", "default/not-specified", "tei", "any"))
"""Names that clients send where the user names none."""


class Loader(Protocol):
    """Loads models for requests and operators; Keeper has the words."""

    async def wait(self, service: Service, deadline: float, *, at_once: bool = False) -> bool: ...

    async def unload(self, service: Service, deadline: float) -> None: ...

    def close(self) -> None: ...


class Registry:
    """Every host answers through a registry. The limits of a call, the bytes in flight, the metrics and the traces
    belong to the server, which has those of the first service; the rest belongs to each model."""

    def __init__(self, *services: Service):
        """Raises SetupError for two models of one name, or for an alias of a model that is not served."""
        self.services: Sequence[Service] = services
        first = services[0]
        self.settings, self.in_flight = first.settings, first.in_flight
        self.metrics, self.tracer = first.metrics, first.tracer
        self.make: Callable[[Settings], Service] = Service
        self._named = by_name(services)
        self.is_local = False
        """Whether only this machine reaches the server; its host says so."""
        self.unknown_fields, self.unknown_models = Firsts(), Firsts()
        """Names in requests that mean nothing here, and that the log has."""
        self.jobs: Store | None = None
        """The files and jobs of the Batch API; a host that runs jobs sets it."""
        self.keeper = Keeper(first.settings, lambda: self.services)
        self.loader: Loader = self.keeper
        """Whom requests ask for a model that is not loaded; in a worker it asks the server's process."""
        # The threads of large bodies, and of large answers.
        self.readers, self.writers = ThreadPoolExecutor(2, "reader"), ThreadPoolExecutor(2, "writer")

    @classmethod
    def of(
        cls,
        settings: Sequence[Settings],
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        *,
        interpreters: Interpreters | None = None,
    ) -> "Registry":
        """A registry of models that are not loaded yet; with `interpreters`, each engine runs in one of them. Raises
        SetupError."""
        metrics = metrics or Metrics()
        processors = Slots(settings[0].threads or available_cpus())
        first = Service(settings[0], metrics, tracer, interpreters, None, processors)

        def make(of: Settings) -> Service:
            return Service(of, metrics, tracer, interpreters, first.in_flight, processors)

        registry = cls(first, *map(make, settings[1:]))
        registry.make = make
        return registry

    def resolve(self, ability: Ability | None = None, name: str | None = None) -> Service:
        """The model of that name. Without a name, or with a placeholder: the first one whose own task is the ability,
        or else the first one that has it, or else the first one. With a single model any name is accepted. Raises
        ModelNotFound, or NotReady while it is unknown which abilities a model has."""
        if len(self.services) == 1:
            return self.services[0]
        if name is not None and name in self._named:
            return self._named[name]
        if name is not None and name.lower() not in PLACEHOLDERS:
            raise self._not_found(name)
        if ability is None:
            return self.services[0]
        able = [service for service in self.services if service.has(ability)] or self.services
        return next((service for service in able if is_own(service.known(), ability)), able[0])

    def named(self, name: str) -> Service:
        """The model of that name, and no other one. Raises ModelNotFound."""
        found = self._named.get(name)
        if found is None:
            raise self._not_found(name)
        return found

    def has_name(self, name: str) -> bool:
        """Whether a model answers to the name, or nobody chose it."""
        return name in self._named or name.lower() in PLACEHOLDERS

    def _not_found(self, name: str) -> ModelNotFound:
        return ModelNotFound(f"the model {short(name)} is not served; served: {', '.join(self.names)}", param="model")

    async def loaded(self, ability: Ability | None, name: str | None, deadline: float) -> tuple[Service, ServedModel]:
        """The model that `resolve` finds, which is loaded if it is not, and its service, with a lease. `deadline` is a
        time.monotonic(). Raises ModelNotFound, NotReady, Overloaded or Expired."""
        while True:
            service = self.resolve(ability, name)
            holds = service.leases.take() or await self.loader.wait(service, deadline)
            if holds:
                return service, service.model

    async def load_named(self, name: str, deadline: float) -> Service:
        """Loads the model of that name for the operator: at once, even if that failed a moment ago. Raises as `loaded`
        does; ModelNotFound, too, if the model is removed meanwhile."""
        while not (service := self.named(name)).leases.is_open:
            if await self.loader.wait(service, deadline, at_once=True):
                service.leases.give_back()
        return service

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(service.settings.served_model_name for service in self.services)

    @property
    def known(self) -> Iterable[str]:
        """Every name that a model answers to."""
        return self._named.keys()

    @property
    def is_draining(self) -> bool:
        return any(service.readiness.state == "draining" for service in self.services)

    def load(self) -> None:
        """Makes every model ready that is not lazy. Blocking. Raises SetupError."""
        self.keeper.start()

    async def check(self, name: str | None = None) -> None:
        """Raises NotReady unless every model answers requests that is not unloaded, or the one of that name. Raises
        ModelNotFound."""
        if name is not None:
            await self.resolve(name=name).check()
            return
        if self.is_draining:
            raise NotReady("the server is draining")
        for service in self.services:
            if service.is_required:
                await service.check()

    def replace(self, services: Sequence[Service]) -> None:
        """Other models from now on. Raises SetupError as the constructor does."""
        self._named, self.services = by_name(services), tuple(services)

    def drain(self) -> None:
        """Admits no more requests; queued ones continue, oldest first."""
        self.loader.close()
        for service in self.services:
            service.drain()

    def close(self) -> None:
        """Drains, waits for queued requests, and stops the threads."""
        self.loader.close()
        for service in self.services:
            service.close()
        for threads in (self.readers, self.writers):
            threads.shutdown(wait=False)


def by_name(services: Sequence[Service]) -> Mapping[str, Service]:
    """Served names before aliases, and aliases before repositories; several models may be of one repository."""
    served: dict[str, Service] = {}
    for service in services:
        name = service.settings.served_model_name
        if served.setdefault(name, service) is not service:
            raise SetupError(f"two models are served as {short(name)}; set runtime.served_model_name of one of them")
    repositories = {service.settings.public_repo: service for service in reversed(services)}
    return {**repositories, **_aliases(services[0].settings.alias, served, repositories), **served}


def _aliases(
    given: Iterable[str], served: Mapping[str, Service], repositories: Mapping[str, Service]
) -> Mapping[str, Service]:
    """Raises SetupError for one whose model is not served, or that already means another model."""
    aliases: dict[str, Service] = {}
    for one in given:
        alias, _, name = one.partition("=")
        found = served.get(name) or repositories.get(name)
        if found is None:
            raise SetupError(f"--alias {one}: {short(name)} is not served; served: {', '.join(served)}")
        if served.get(alias, found) is not found:
            raise SetupError(f"--alias {one}: {short(alias)} is another model's own name; choose another alias")
        if aliases.setdefault(alias, found) is not found:
            raise SetupError(f"--alias {one}: {short(alias)} is an alias of another model already; choose another one")
    return aliases
