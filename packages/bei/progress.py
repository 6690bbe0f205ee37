"""Bars with the time that is left, on stderr: one library for every command, and few lines in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0  # between two lines


class Bar:
    """A bar over `total` steps of a `unit`, of which `done` were done before. On a terminal it moves; in a log it is a
    line each half minute. `more` counts something else whose rate is shown, such as tokens."""

    def __init__(self, total: float | None, unit: str, *, done: int = 0, more: str = "", name: str | None = None):
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=f" {unit}", unit_scale=True, dynamic_ncols=watched, desc=name,
            mininterval=_TERMINAL_SECONDS if watched else _LOG_SECONDS, smoothing=0.05,
        )  # fmt: skip
        self._more, self._count, self._started = more, 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, steps: float, more: int = 0) -> None:
        """So many steps more are done, and so many of `more`."""
        self._count += more
        if self._more:
            rate = self._count / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{tqdm.format_sizeof(rate)} {self._more}/s", refresh=False)
        self._bar.update(steps)
