"""Whether a model answers requests."""

from typing import Literal

from bei.engines.base import Engine
from bei.errors import NotReady
from bei.remote import RemoteEngine

State = Literal["unloaded", "loading", "ready", "failed", "draining"]


class Readiness:
    """The state of one model. Its service changes it; every task reads it."""

    def __init__(self) -> None:
        self.state: State = "loading"

    def check(self, engine: Engine | RemoteEngine) -> None:
        """Raises NotReady unless the model is ready and its engine works."""
        if self.state != "ready":
            raise self.refusal()
        if engine.fault is not None:
            raise NotReady(engine.fault)

    def refusal(self) -> NotReady:
        if self.state == "unloaded":
            return NotReady("the model is unloaded; a request for it loads it")
        return NotReady("the model failed to load" if self.state == "failed" else f"the model is {self.state}")
