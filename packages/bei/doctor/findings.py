"""A finding: one fact about the machine, and the command that mends it where something is missing."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "fault"]
"""`missing` is about a part that not everybody needs; with a `fault` nothing can be served."""


@dataclass(frozen=True)
class Finding:
    subject: str
    state: State
    says: str
    remedy: str | None = None


def bytes_in_words(count: int) -> str:
    """`2.1 GB`, in powers of 1,000."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
