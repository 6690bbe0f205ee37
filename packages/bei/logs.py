"""Log lines, as text or as JSON, with the ids of their request and the model and device that they are about. A client
cannot forge one."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from bei.errors import SetupError, short

log = logging.getLogger("bei")

_ids: ContextVar[tuple[str | None, str | None]] = ContextVar("ids", default=(None, None))
_model: ContextVar[tuple[str | None, str | None]] = ContextVar("model", default=(None, None))
_CONTROLS = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that end or hide a line, or change its direction; they are escaped as in Python's literals."""

access = logging.getLogger("bei.access")
"""One line per request; silent unless `to_stderr` is asked for it. `extra={"fields": {...}}` is logged as its
fields."""
access.disabled = True


def about(request_id: str, trace_id: str | None) -> None:
    """Every later line of this task, and of the tasks that it starts, carries these ids."""
    _ids.set((request_id, trace_id))


def about_model(name: str, device: str | None = None) -> None:
    """The same for a model, and a device by the names of the metrics' labels; in a thread, to its end."""
    _model.set((name, device))


@contextmanager
def of_model(name: str, device: str | None = None) -> Iterator[None]:
    """Every line within it carries them."""
    token = _model.set((name, device))
    try:
        yield
    finally:
        _model.reset(token)


def to_stderr(level: str, *, as_json: bool = False, requests: bool = False) -> None:
    """Logs our lines from `level` on, and warnings of others. `requests` adds a line for each request. Raises
    SetupError."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JSON() if as_json else _Text("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    try:
        logging.getLogger("bei").setLevel(level.upper())
    except ValueError:
        raise SetupError(f"--log-level {short(level)}: use debug, info, warning or error") from None
    logging.basicConfig(level="WARNING", handlers=[handler])
    access.disabled = not requests


class Firsts:
    """Names that clients invent, for lines that are logged once each: at most `most` names are ever new."""

    def __init__(self, most: int = 100):
        self._most = most
        self._seen: set[str] = set()

    def is_new(self, name: str) -> bool:
        """Whether nobody asked for the name before. `name` should be short."""
        if name in self._seen or len(self._seen) >= self._most:
            return False
        self._seen.add(name)
        return True


@contextmanager
def step(name: str) -> Iterator[None]:
    """Logs a step of the start with its duration."""
    started = time.monotonic()
    log.info("%s ...", name)
    yield
    log.info("%s: %.1f s", name, time.monotonic() - started)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    ids = zip(("model", "device", "request_id", "trace_id"), (*_model.get(), *_ids.get()), strict=True)
    return {**getattr(record, "fields", {}), **{name: value for name, value in ids if value}}


class _Text(logging.Formatter):
    """`time level message field=value`. The lines of a traceback are indented, so that none looks like a log line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        fields = (f"{name}={value}" for name, value in _fields(record).items())
        return " ".join((line, *fields)).translate(_CONTROLS)

    def formatException(self, exc_info: Any) -> str:
        lines = super().formatException(exc_info).split("\n")
        return "\n".join(f"  | {line.translate(_CONTROLS)}" for line in lines)


class _JSON(logging.Formatter):
    """One JSON object per line. The named values of a message are fields of their own, too."""

    def format(self, record: logging.LogRecord) -> str:
        written = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        named: Mapping[str, Any] = record.args if isinstance(record.args, Mapping) else {}
        line: dict[str, Any] = {"timestamp": written, "level": record.levelname, "message": record.getMessage()}
        line |= {**named, **_fields(record)}
        return json.dumps(line | ({"exception": self.formatException(record.exc_info)} if record.exc_info else {}))
