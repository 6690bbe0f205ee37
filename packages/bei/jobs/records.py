"""The records of files and jobs. Each has one writer, and is JSON in a file that is replaced as a whole."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from bei import files

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
"""OpenAI's words for the state of a job."""

FINAL: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")

_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that a client sent, or that a job made. Times are in seconds since the epoch."""

    id: str
    filename: str
    purpose: str
    size: int
    created: float
    expires: float | None


@dataclass(frozen=True, kw_only=True)
class Order:
    """A client's wish for a job. `base` is the model of its base URL. Of the two last files, which the job will make,
    `output_seconds` is the lifetime."""

    id: str
    created: float
    expires: float
    window: str
    endpoint: str
    base: str | None
    metadata: Mapping[str, str] | None
    input_file_id: str
    output_seconds: int | None
    output_file_id: str
    error_file_id: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a job fails as a whole: `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(kw_only=True)
class Progress:
    """How far a job is. `offset` and `line` are the place in its input up to which all is answered, `output_size` and
    `error_size` the bytes of the answers. `times`: when it came to a status. Once it is finalizing, `ending` is the
    status that follows."""

    status: Status = "validating"
    ending: Status = "completed"
    times: dict[Status, float] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    offset: int = 0
    line: int = 0
    output_size: int = 0
    error_size: int = 0
    faults: list[Fault] = field(default_factory=list)

    def become(self, status: Status, now: float) -> None:
        self.status = status
        self.times.setdefault(status, now)


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """A client's wish that a job end."""

    at: float


@dataclass(frozen=True)
class Job:
    order: Order
    progress: Progress
    cancellation: Cancellation | None

    @property
    def is_final(self) -> bool:
        return self.progress.status in FINAL

    @property
    def status(self) -> Status:
        return "cancelling" if self.cancellation and not self.is_final else self.progress.status

    def at(self, status: Status) -> float | None:
        """When it came to a status."""
        if status == "cancelling":
            return self.cancellation.at if self.cancellation else None
        return self.progress.times.get(status)


def new_id(prefix: Literal["file-", "batch_"]) -> str:
    """One that nobody guesses."""
    return prefix + secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Whether a text is the form of an id, and so the name of a file in one folder."""
    return _ID.fullmatch(text) is not None


class _Adapters(dict[type, TypeAdapter[Any]]):
    """Made when they are needed: those of the four kinds take 40 ms, and most servers have no records."""

    def __missing__(self, kind: type) -> TypeAdapter[Any]:
        return self.setdefault(kind, TypeAdapter(kind))


_ADAPTERS = _Adapters()


def write(place: Path, record: Any) -> None:
    """Raises OSError."""
    with files.replacing(place) as unfinished:
        unfinished.write_bytes(orjson.dumps(record))


def read(place: Path, kind: type[R]) -> R | None:
    """The record; None if there is none, or a damaged one. Raises OSError."""
    try:
        found: R = _ADAPTERS[kind].validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found
