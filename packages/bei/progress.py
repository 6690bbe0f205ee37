"""Bars with the time that is left, on stderr: one library for every command, and few lines in a log."""

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

log = logging.getLogger("bei")

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0  # between two states of a bar
_STAGE_SECONDS = 5.0  # between two lines of a log


class _Shown:
    """A bar that ends with its block."""

    _bar: "tqdm[Any]"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class Bar(_Shown):
    """A bar over `total` steps of a `unit`, of which `done` were done before. On a terminal it moves; in a log it is a
    line each half minute. `more` counts something else whose rate is shown, such as tokens."""

    def __init__(self, total: float, unit: str, *, done: int = 0, more: str = "", name: str | None = None):
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=f" {unit}", unit_scale=True, dynamic_ncols=watched, desc=name,
            mininterval=_TERMINAL_SECONDS if watched else _LOG_SECONDS, smoothing=0.05,
        )  # fmt: skip
        self._more, self._count, self._started = more, 0, time.monotonic()

    def add(self, steps: float, more: int = 0) -> None:
        """So many steps more are done, and so many of `more`."""
        self._count += more
        if self._more:
            rate = self._count / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{tqdm.format_sizeof(rate)} {self._more}/s", refresh=False)
        self._bar.update(steps)


class Stage(_Shown):
    """One stage of a longer work, such as a download: `total` steps of a `unit`, B for bytes, where that is known. On a
    terminal it is a bar; elsewhere a line of the log each five seconds, since a server's log may be JSON."""

    def __init__(self, name: str, total: int | None, unit: str = "B", *, done: int = 0):
        self._name, self._unit, self._told = name, unit, time.monotonic()
        self._watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True, desc=name, leave=False,
            mininterval=_TERMINAL_SECONDS, disable=not self._watched,
        )  # fmt: skip
        self._done, self._total = done, total

    def add(self, count: int) -> None:
        """So many steps more."""
        self._done += count
        self._bar.update(count)
        if not self._watched and time.monotonic() - self._told > _STAGE_SECONDS:
            self._told = time.monotonic()
            done, total = (tqdm.format_sizeof(count) for count in (self._done, self._total or 0))
            log.info("%s: %s%s of %s", self._name, done, self._unit, total if self._total else "an unknown number")
