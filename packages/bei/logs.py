"""Log lines, as text or as JSON, with the ids of the request they are about. What a client sends cannot forge one."""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from bei.errors import SetupError

_ids: ContextVar[tuple[str | None, str | None]] = ContextVar("ids", default=(None, None))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

access = logging.getLogger("bei.access")
"""One line a request; silent unless `to_stderr` is asked for it. `extra={"fields": {...}}` is logged as its fields."""
access.disabled = True


def about(request_id: str, trace_id: str | None) -> None:
    """Every line of this task, and of those it starts, carries these ids from now on."""
    _ids.set((request_id, trace_id))


def to_stderr(level: str, *, as_json: bool = False, requests: bool = False) -> None:
    """Log ours from `level` on, others' warnings; `requests` adds a line for each. Raises SetupError."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JSON() if as_json else _Text("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    try:
        logging.getLogger("bei").setLevel(level.upper())
    except ValueError:
        raise SetupError(f"--log-level {level!r}: use debug, info, warning or error") from None
    logging.basicConfig(level="WARNING", handlers=[handler])
    access.disabled = not requests


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    ids = zip(("request_id", "trace_id"), _ids.get(), strict=True)
    return {**getattr(record, "fields", {}), **{name: value for name, value in ids if value}}


def _escape(text: str) -> str:
    """Control characters, and what else ends a line, as Python writes them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class _Text(logging.Formatter):
    """`time level message field=value`; a traceback's lines are set in, so that none looks like a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return _escape(" ".join((line, *(f"{name}={value}" for name, value in _fields(record).items()))))

    def formatException(self, exc_info) -> str:
        return "\n".join(f"  | {_escape(line)}" for line in super().formatException(exc_info).split("\n"))


class _JSON(logging.Formatter):
    """One object a line, with TEI's names."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"timestamp": time, "level": record.levelname, "message": record.getMessage(), **_fields(record)}
        return json.dumps(line | ({"exception": self.formatException(record.exc_info)} if record.exc_info else {}))
