"""The counts of a server: of its calls, and of each model that it serves. The starter of a server makes its Metrics and
passes them down."""

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    multiprocess,
    values,
)

from bei.metrics.exposition import SharedRendering, text
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
        self._replies: dict[tuple[str, int], Counter] = {}
        self._rendering = SharedRendering(self.exposition)

    def of_model(self, name: str) -> "ModelMetrics":
        return ModelMetrics(self, self._families, name)

    def observe_reply(self, path: str, status: int) -> None:
        """Counts an answered call; `path` is a route's, or `other`."""
        counter = self._replies.get((path, status))
        if counter is None:
            counter = self._replies[path, status] = self._families.requests.labels(path, status)
        counter.inc()

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
        self._count = {method: families.request_count.labels(method, name) for method in ("single", "batch")}
        self._success = {method: families.request_success.labels(method, name) for method in ("single", "batch")}
        self._failures: dict[str, Counter] = {}
        self._embed = families.embed_count.labels(name), families.embed_success.labels(name)
        self._predict = families.predict_count.labels(name), families.predict_success.labels(name)
        self._duration = families.request_duration.labels(name)
        self._tokenization = families.tokenization_duration.labels(name)
        self._queue = families.queue_duration.labels(name)
        self._inference = families.inference_duration.labels(name)
        self._request_tokens = families.request_tokens.labels(name)
        self._truncated_texts = families.truncated_texts.labels(name)
        self._batch_size = families.batch_size.labels(name)
        self._batch_tokens = families.batch_tokens.labels(name)
        self._batch_fill = families.batch_fill.labels(name)
        self._padded_tokens = families.padded_tokens.labels(name)
        self._engine_seconds = families.engine_seconds.labels(name)
        self._engine_tokens = families.engine_tokens.labels(name)
        self._engine_streams = families.engine_streams.labels(name)
        self._queue_size = families.queue_size.labels(name)
        self._queue_tokens = families.queue_tokens.labels(name)
        self._ready = families.ready.labels(name)
        self.requests_in_flight = families.requests_in_flight.labels(name)
        self.input_length = families.input_length.labels(name)
        self.engine_restarts = families.engine_restarts.labels(name)

    def of_device(self, name: str) -> "DeviceMetrics":
        return DeviceMetrics(self, self._families, name, self.name)

    def observe_engine(self, engine: str, device: str, precision: str, streams: int) -> None:
        """Notes the served model and its engine."""
        self._families.info.labels(engine, device, precision, self.name).set(1)
        self._engine_streams.set(streams)

    def set_ready(self, ready: bool) -> None:
        self._ready.set(ready)

    def observe_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Counts a batch that the engine finished."""
        self._batch_size.observe(texts)
        self._batch_tokens.observe(tokens)
        self._engine_seconds.inc(seconds)
        self._engine_tokens.inc(tokens)

    def observe_packing(self, texts: int, tokens: int, longest: int, budget: int) -> None:
        """Counts the fill of a batch; `longest`, its longest text, and `budget` are in tokens."""
        self._batch_fill.observe(tokens / budget)
        self._padded_tokens.inc(texts * longest)

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
        self._count[method].inc()
        self._success[method].inc()
        for counter in self._predict if scored else self._embed:
            counter.inc(texts)
        self._request_tokens.inc(tokens)
        self._truncated_texts.inc(truncated_texts)
        if is_background:
            return
        self._duration.observe(total)
        self._tokenization.observe(tokenization)
        self._queue.observe(queue)
        self._inference.observe(inference)

    def observe_failure(self, texts: int, cause: str, *, scored: bool) -> None:
        """Counts a request that was refused or failed. `texts` is 0 if its body could not be read; `cause` is one of
        TEI's labels."""
        counter = self._failures.get(cause)
        if counter is None:
            counter = self._failures[cause] = self._families.request_failure.labels(cause, self.name)
        counter.inc()
        if texts:
            self._count[_method(texts)].inc()
            (self._predict if scored else self._embed)[0].inc(texts)


class DeviceMetrics:
    """The counts of one device of a model."""

    def __init__(self, model: ModelMetrics, families: Families, name: str, model_name: str):
        self._model, self.model = model, model_name
        self._batches = families.device_batches.labels(name, model_name)
        self._seconds = families.device_seconds.labels(name, model_name)
        self._restarts = families.device_restarts.labels(name, model_name)
        self._streams = families.device_streams.labels(name, model_name)
        self._down = families.device_down.labels(name, model_name)

    def observe_start(self, streams: int) -> None:
        """Notes that the device's engine runs batches."""
        self._streams.set(streams)
        self._down.set(0)

    def observe_batch(self, seconds: float) -> None:
        """Counts a batch that the device has answered."""
        self._batches.inc()
        self._seconds.inc(seconds)

    def observe_death(self, *, restarts: bool) -> None:
        """Notes that the device runs no batches, and counts the restart that follows."""
        self._down.set(1)
        if restarts:
            self._restarts.inc()
            self._model.engine_restarts.inc()

    def observe_end(self) -> None:
        """Notes that nobody needs the device any more."""
        self._down.set(0)


def _method(texts: int) -> str:
    return "single" if texts == 1 else "batch"
