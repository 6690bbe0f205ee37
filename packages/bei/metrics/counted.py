"""The counts of a server: of its calls, and of each model that it serves. The starter of a server makes its Metrics and
passes them down."""

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    multiprocess,
    values,
)

from bei.metrics.direct import Count, counting, observing
from bei.metrics.exposition import GONE, SharedRendering, text
from bei.metrics.families import Families

Cancellation = Literal["disconnect", "deadline", "drain"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of one server. Safe to use from several threads."""

    def __init__(self, folder: Path | None = None):
        """With a `folder`, empty at first, they are those of all processes whose Metrics are made with it, and the only
        ones of this process. Without it they are this process's own."""
        self.folder = folder
        if folder is not None:
            os.environ[_FOLDER] = str(folder)  # prometheus_client has one folder per process, and this is how it is set
            values.ValueClass = values.get_value_class()
        self._registry = CollectorRegistry()
        self._families = Families(self._registry)
        if folder is None:
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=self._registry)
        self._replies: dict[tuple[str, int], Count] = {}
        self._models: dict[str, ModelMetrics] = {}
        self._rendering = SharedRendering(self.exposition)

    def of_model(self, name: str) -> "ModelMetrics":
        """The same ones for a model and for the one that takes over from it."""
        if name not in self._models:
            self._models[name] = ModelMetrics(self, self._families, name)
        return self._models[name]

    def observe_reply(self, path: str, status: int) -> None:
        """Counts an answered call; `path` is a route's, or `other`."""
        count = self._replies.get((path, status))
        if count is None:
            count = self._replies[path, status] = counting(self._families.requests, path, status)
        count(1)

    def observe_unresolved(self, cause: str) -> None:
        """Counts a request for a model that is not served, under no name. `cause` is one of TEI's labels."""
        self._families.request_failure.labels(cause, "").inc()

    def observe_cancelled(self, reason: Cancellation) -> None:
        """Counts an abandoned request: its client left, its deadline passed, or the server stopped."""
        self._families.cancelled.labels(reason).inc()

    def observe_line(self, *, is_success: bool) -> None:
        """Counts a line of a job that has its answer, or its error."""
        self._families.job_lines.labels("completed" if is_success else "failed").inc()

    def observe_jobs(self, open: int, size: int) -> None:
        """Notes the number of jobs that have not ended, and the bytes of all files."""
        self._families.jobs.set(open)
        self._families.job_bytes.set(size)

    def forget(self, pid: int) -> None:
        """Notes that a process of the folder has ended: its gauges go, its counts stay in the sums."""
        multiprocess.mark_process_dead(pid, str(self.folder))

    def exposition(self) -> bytes:
        """Every metric in Prometheus' text format; names of TEI in TEI's way."""
        registry = self._registry
        if self.folder is not None:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, str(self.folder))
        return text(registry)

    def shared_exposition(self) -> Future[bytes]:
        """The text of a rendering that has not begun yet, made by a thread; all who ask before it begins share it."""
        return self._rendering.next()


class ModelMetrics:
    """The counts of one model. Labels are looked up here once, because that takes longer than counting."""

    def __init__(self, server: Metrics, families: Families, name: str):
        self.server, self._families, self.name = server, families, name
        self._count = {method: counting(families.request_count, method, name) for method in ("single", "batch")}
        self._success = {method: counting(families.request_success, method, name) for method in ("single", "batch")}
        self._failures: dict[str, Count] = {}
        self._embed = counting(families.embed_count, name), counting(families.embed_success, name)
        self._predict = counting(families.predict_count, name), counting(families.predict_success, name)
        self._duration = observing(families.request_duration, name)
        self._tokenization = observing(families.tokenization_duration, name)
        self._queue = observing(families.queue_duration, name)
        self._inference = observing(families.inference_duration, name)
        self._request_tokens = counting(families.request_tokens, name)
        self._truncated_texts = counting(families.truncated_texts, name)
        self._batch_size = observing(families.batch_size, name)
        self._batch_tokens = observing(families.batch_tokens, name)
        self._batch_fill = observing(families.batch_fill, name)
        self._padded_tokens = counting(families.padded_tokens, name)
        self._engine_seconds = counting(families.engine_seconds, name)
        self._engine_tokens = counting(families.engine_tokens, name)
        self._engine_streams = families.engine_streams.labels(name)
        self._queue_size = families.queue_size.labels(name)
        self._queue_tokens = families.queue_tokens.labels(name)
        self._ready = families.ready.labels(name)
        self.requests_in_flight = families.requests_in_flight.labels(name)
        self.observe_length = observing(families.input_length, name)
        self.engine_restarts = families.engine_restarts.labels(name)
        self._info: Gauge | None = None
        self._devices: dict[str, DeviceMetrics] = {}

    def of_device(self, name: str) -> "DeviceMetrics":
        if name not in self._devices:
            self._devices[name] = DeviceMetrics(self, self._families, name, self.name)
        return self._devices[name]

    def observe_engine(self, engine: str, device: str, precision: str, streams: int) -> None:
        """Notes the served model and its engine, in the place of an earlier one."""
        info = self._families.info.labels(engine, device, precision, self.name)
        if self._info is not None and self._info is not info:
            self._info.set(GONE)
        self._info = info
        info.set(1)
        self._engine_streams.set(streams)

    def forget(self) -> None:
        """Notes that nobody serves the model any more: its states go, its counts stay."""
        for state in (self._ready, self._engine_streams, *([] if self._info is None else [self._info])):
            state.set(GONE)
        for device in self._devices.values():
            device.forget()

    def set_ready(self, ready: bool) -> None:
        """Notes whether a request for the model is answered, even if it has to load it."""
        self._ready.set(ready)

    def observe_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Counts a batch that the engine finished."""
        self._batch_size(texts)
        self._batch_tokens(tokens)
        self._engine_seconds(seconds)
        self._engine_tokens(tokens)

    def observe_packing(self, texts: int, tokens: int, longest: int, budget: int) -> None:
        """Counts the fill of a batch; `longest`, its longest text, and `budget` are in tokens."""
        self._batch_fill(tokens / budget)
        self._padded_tokens(texts * longest)

    def observe_queue(self, texts: int, tokens: int) -> None:
        """Notes the size of the queue."""
        self._queue_size.set(texts)
        self._queue_tokens.set(tokens)

    def observe_answer(
        self,
        texts: int,
        tokens: int,
        *,
        scored: bool,
        total: float,
        tokenization: float,
        queue: float,
        inference: float,
        truncated_texts: int = 0,
        is_background: bool = False,
    ) -> None:
        """Counts an answered request. Times are in seconds; those of the queue and the engine are means over its
        texts. How long one in the background waits says nothing about the others, so its times are left out."""
        method = _method(texts)
        self._count[method](1)
        self._success[method](1)
        for count in self._predict if scored else self._embed:
            count(texts)
        self._request_tokens(tokens)
        self._truncated_texts(truncated_texts)
        if is_background:
            return
        self._duration(total)
        self._tokenization(tokenization)
        self._queue(queue)
        self._inference(inference)

    def observe_failure(self, texts: int, cause: str, *, scored: bool) -> None:
        """Counts a request that was refused or failed. `texts` is 0 if its body could not be read; `cause` is one of
        TEI's labels."""
        count = self._failures.get(cause)
        if count is None:
            count = self._failures[cause] = counting(self._families.request_failure, cause, self.name)
        count(1)
        if texts:
            self._count[_method(texts)](1)
            (self._predict if scored else self._embed)[0](texts)


class DeviceMetrics:
    """The counts of one device of a model."""

    def __init__(self, model: ModelMetrics, families: Families, name: str, model_name: str):
        self._model, self.model = model, model_name
        self._batches = counting(families.device_batches, name, model_name)
        self._seconds = counting(families.device_seconds, name, model_name)
        self._restarts = families.device_restarts.labels(name, model_name)
        self._streams = families.device_streams.labels(name, model_name)
        self._down = families.device_down.labels(name, model_name)

    def observe_start(self, streams: int) -> None:
        """Notes that the device's engine runs batches."""
        self._streams.set(streams)
        self._down.set(0)

    def observe_batch(self, seconds: float) -> None:
        """Counts a batch that the device has answered."""
        self._batches(1)
        self._seconds(seconds)

    def observe_death(self, *, restarts: bool) -> None:
        """Notes that the device runs no batches, and counts the restart that follows."""
        self._down.set(1)
        if restarts:
            self._restarts.inc()
            self._model.engine_restarts.inc()

    def observe_end(self) -> None:
        """Notes that nobody needs the device any more."""
        self._down.set(0)

    def forget(self) -> None:
        self._streams.set(GONE)
        self._down.set(GONE)


def _method(texts: int) -> str:
    return "single" if texts == 1 else "batch"
