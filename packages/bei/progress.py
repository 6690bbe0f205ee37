"""Bars with the time that is left, on stderr: one library for every command, and few lines in a log. It is imported
when the first bar is drawn, since a server that starts draws none in a log."""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger("bei")

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0  # between two states of a bar
_STAGE_SECONDS = 5.0  # between two lines of a log
_TICK = 0.5  # seconds
_BY_TIME = "{l_bar}{bar}| {elapsed}<{remaining}"


def is_watched() -> bool:
    """Whether stderr is a terminal, where a bar can move."""
    return sys.stderr.isatty()


class _Shown:
    """A bar that ends with its block; None for none."""

    _bar: "tqdm[Any] | None"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Bar(_Shown):
    """A bar over `total` steps of a `unit`, of which `done` were done before. On a terminal it moves; in a log it is a
    line each half minute. `more` counts something else whose rate is shown, such as tokens."""

    _bar: "tqdm[Any]"

    def __init__(self, total: float, unit: str, *, done: int = 0, more: str = "", name: str | None = None):
        watched = is_watched()
        self._bar = _drawn(
            total=total, initial=done, unit=f" {unit}", unit_scale=True, dynamic_ncols=watched, desc=name,
            mininterval=_TERMINAL_SECONDS if watched else _LOG_SECONDS, smoothing=0.05,
        )  # fmt: skip
        self._more, self._count, self._started = more, 0, time.monotonic()

    def add(self, steps: float, more: int = 0) -> None:
        """So many steps more are done, and so many of `more`."""
        self._count += more
        if self._more:
            rate = self._count / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{_short(rate)} {self._more}/s", refresh=False)
        self._bar.update(steps)


class Stage(_Shown):
    """One stage of a longer work, such as a download: `total` steps of a `unit`, B for bytes, where that is known. On a
    terminal it is a bar; elsewhere a line of the log each five seconds, since a server's log may be JSON."""

    def __init__(self, name: str, total: int | None, unit: str = "B", *, done: int = 0):
        self._name, self._unit, self._told = name, unit, time.monotonic()
        self._bar = _passing(total=total, initial=done, unit=unit, unit_scale=True, desc=name)
        self._done, self._total = done, total

    def add(self, count: int) -> None:
        """So many steps more."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._told > _STAGE_SECONDS:
            self._told = time.monotonic()
            total = _short(self._total) if self._total else "an unknown number"
            log.info("%s: %s%s of %s", self._name, _short(self._done), self._unit, total)


class Wait(_Shown):
    """The wait for a work without steps, such as a compiler's, which `takes` so many seconds elsewhere: on a terminal a
    bar by time, which counts on without an end where that is too few; elsewhere nothing."""

    def __init__(self, name: str, takes: float):
        self._bar = _passing(total=takes, desc=name, bar_format=_BY_TIME)
        self._ended = threading.Event()
        self._clock = None if self._bar is None else threading.Thread(target=self._tick, args=(self._bar,), name=name)

    def __enter__(self) -> Self:
        if self._clock is not None:
            self._clock.start()
        return self

    def __exit__(self, *how: Any) -> None:
        self._ended.set()
        if self._clock is not None:
            self._clock.join()
        super().__exit__(*how)

    def _tick(self, bar: "tqdm[Any]") -> None:
        while not self._ended.wait(_TICK):
            bar.update(_TICK)


def _passing(**options: Any) -> "tqdm[Any] | None":
    """A bar that is gone when it ends; None where nobody would see it move."""
    if not is_watched():
        return None
    return _drawn(**options, dynamic_ncols=True, leave=False, mininterval=_TERMINAL_SECONDS)


def _drawn(**options: Any) -> "tqdm[Any]":
    from tqdm import tqdm

    return tqdm(**options)


def _short(count: float) -> str:
    from tqdm import tqdm

    return tqdm.format_sizeof(count)
