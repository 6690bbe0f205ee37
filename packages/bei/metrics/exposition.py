"""The text that Prometheus reads."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client import CollectorRegistry, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

GONE = -1.0
"""The state of a model that nobody serves any more. Its line is left out of the text: prometheus_client cannot remove
one from the files that several processes share."""
_GONE = re.compile(rb"^bei_\w+\{.*\} -1\.0\n", re.MULTILINE)
_TEI_COUNTER = re.compile(rb"^((?:# (?:HELP|TYPE) )?te_\w+)_total\b", re.MULTILINE)
_TEI_DURATION = re.compile(rb"^(?:# (?:HELP|TYPE) )?te_request_(?:[a-z]+_)?duration.*\n", re.MULTILINE)
_TASK_COUNT = re.compile(rb'^te_(embed|predict)_count\{(model="(?:[^"\\]|\\.)*")\} (.*)$', re.MULTILINE)


def text(registry: CollectorRegistry) -> bytes:
    """Every metric of a registry in Prometheus' text format; names of TEI in TEI's way. TEI's counters have no
    `_total`. The te_embed_* or te_predict_* durations equal those of te_request_*, because a model has one task."""
    plain = _TEI_COUNTER.sub(rb"\1", _GONE.sub(b"", generate_latest(registry)))
    return b"".join([plain, *_task_durations(plain)])


def _task_durations(plain: bytes) -> Iterator[bytes]:
    """The lines of either task, for the models that have had a text for it."""
    durations: list[bytes] = _TEI_DURATION.findall(plain)
    counts: list[tuple[bytes, bytes, bytes]] = _TASK_COUNT.findall(plain)
    for task in (b"embed", b"predict"):
        models = tuple(model + b"}" for of, model, count in counts if of == task and count != b"0.0")
        for line in durations:
            if models and (line.startswith(b"#") or line.rpartition(b" ")[0].endswith(models)):
                yield line.replace(b"te_request", b"te_" + task, 1)


class SharedRendering:
    """A text rendered by a thread, one rendering at a time; all who ask before one begins share it."""

    def __init__(self, render: Callable[[], bytes]):
        self._render = render
        self._thread = ThreadPoolExecutor(1, "exposition")
        self._lock = threading.Lock()
        self._next: Future[bytes] | None = None

    def next(self) -> Future[bytes]:
        """The next rendering that has not begun."""
        with self._lock:
            if self._next is None:
                self._next = self._thread.submit(self._begin)
            return self._next

    def _begin(self) -> bytes:
        with self._lock:
            self._next = None
        return self._render()
