"""The models that one server serves, and the state that they share. So far there is exactly one."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bei.serving.service import Service


class Registry:
    """Every host answers through a registry. The limits of a call, the bytes in flight, the metrics and the traces
    belong to the server, the rest to each model."""

    def __init__(self, service: Service):
        self.services: Sequence[Service] = (service,)
        self.settings, self.in_flight = service.settings, service.in_flight
        self.metrics, self.tracer = service.metrics, service.tracer
        # The threads of large bodies, and of large answers.
        self.readers, self.writers = ThreadPoolExecutor(2, "reader"), ThreadPoolExecutor(2, "writer")

    def resolve(self, route: str, name: str | None = None) -> Service:
        """The model that answers a request to a route, by the name in the request, if there is one. With a single model
        any name is accepted."""
        return self.services[0]

    @property
    def is_draining(self) -> bool:
        return any(service.readiness.state == "draining" for service in self.services)

    def load(self) -> None:
        """Makes every model ready. Blocking. Raises SetupError."""
        for service in self.services:
            service.load()

    async def check(self) -> None:
        """Raises NotReady unless every model answers requests."""
        for service in self.services:
            await service.check()

    def drain(self) -> None:
        """Admits no more requests; queued ones continue, oldest first."""
        for service in self.services:
            service.drain()

    def close(self) -> None:
        """Drains, waits for queued requests, and stops the threads."""
        for service in self.services:
            service.close()
        for threads in (self.readers, self.writers):
            threads.shutdown(wait=False)
