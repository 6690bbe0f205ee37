"""The messages between the server's process and a worker about its models. Each model has a number; a new model of the
same name has another one."""

from dataclasses import dataclass
from typing import Any

from bei import wire
from bei.engines.base import EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """To a new worker. `keys` are the API's. `is_late`: the other workers answer already."""

    keys: list[str]
    log_level: str
    is_late: bool
    metrics_folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """To a worker: the settings of a model, as JSON without secrets."""

    number: int
    settings: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """To a worker, before the engine's facts and a channel to the scheduler: a model is loaded."""

    number: int
    folder: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    """To a worker: a model is not loaded, or no longer. `fault` is why its load failed. `is_gone`: nobody will ask for
    it again."""

    number: int
    folder: str
    revision: str | None
    fault: str | None = None
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """To a worker: these models are served from now on, in this order. Those that are loaded have been opened."""

    numbers: list[int]


@dataclass(frozen=True, slots=True)
class Ended:
    """To a worker: a model that it wanted to end has ended."""

    number: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """From a worker: requests wait for a model."""

    number: int


@dataclass(frozen=True, slots=True)
class Unwanted:
    """From a worker: its operator wants a model to end."""

    number: int


@dataclass(frozen=True, slots=True)
class Used:
    """From a worker: models that it has used since the last message of this kind."""

    numbers: list[int]


FROM_WORKER = wire.Reader[Wanted | Unwanted | Used](Wanted, Unwanted, Used)
TO_WORKER = wire.Reader[Any](WorkerSetup, Model, Opened, EngineFacts, Unloaded, Served, Ended)
