"""Progress, speed and remaining time, on stderr."""

import sys
import time
from typing import Self

from tqdm import tqdm

from bei.bulk.worker import Done


class Progress:
    """A progress bar of texts, with tokens per second; a line every half minute if stderr is not a terminal."""

    def __init__(self, row_count: int, done: int):
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=row_count, initial=done, unit=" texts", unit_scale=True, dynamic_ncols=watched,
            mininterval=0.2 if watched else 30, smoothing=0.05,
        )  # fmt: skip
        self._started, self._tokens = time.monotonic(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, done: Done) -> None:
        self._tokens += done.tokens
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{tqdm.format_sizeof(rate)} tokens/s", refresh=False)
        self._bar.update(done.row_count)
