"""The messages between a server and the process of its engine, besides the batches and the engine's facts."""

from dataclasses import dataclass

import numpy as np

from bei import wire
from bei.engines.base import Batch, EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """To a new process: the engine that it makes, and of what checkpoint. `settings` are JSON, without secrets.
    `allowance` is the process's own descriptor of the file of its allowance."""

    settings: str
    folder: str
    revision: str | None
    log_level: int
    allowance: int = -1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no engine, in place of its facts."""

    message: str


@dataclass(frozen=True, slots=True)
class LogLine:
    level: int
    text: str


@dataclass(slots=True)
class Rows:
    """The rows of a batch."""

    rows: np.ndarray


@dataclass(slots=True)
class Failure:
    """Why a batch has no rows."""

    message: str


TO_LOAD = wire.Reader(Load)
LOADED = wire.Reader[EngineFacts | Refusal | LogLine](EngineFacts, Refusal, LogLine)
BATCHES = wire.Reader(Batch)
RESULTS = wire.Reader[Rows | Failure](Rows, Failure)
