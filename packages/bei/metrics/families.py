"""Every metric, declared once. Metrics of a model have the label `model` after their own labels; those of its
devices have `device` before it."""

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from bei import __version__

disable_created_metrics()  # otherwise each has one more series, which no query here needs

_SECONDS = [1.5e-5 * 1.5**k for k in range(35)]
_LENGTHS = [2.0**k for k in range(16)]
_SIZES = [2.0**k for k in range(13)]
_TOKENS = [2.0**k for k in range(21)]
_SHARES = [0.01, 0.02, 0.05, *(k / 10 for k in range(1, 11))]


class Families:
    """The metrics of one registry. In a server of several processes counters and histograms are sums, and gauges are
    sums or maxima over living processes."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry
        self._declare_tei()
        self._declare_ours()
        self._declare_devices()
        self._declare_server()

    def _declare_tei(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.request_count = counter("te_request_count", "Requests for the model, answered or failed", "method")
        self.request_success = counter("te_request_success", "Requests answered", "method")
        self.request_failure = counter(
            "te_request_failure", "Requests for the model that were refused or failed", "err"
        )
        self.embed_count = counter("te_embed_count", "Texts to embed")
        self.embed_success = counter("te_embed_success", "Texts embedded")
        self.predict_count = counter("te_predict_count", "Texts and pairs to score, classify or tag")
        self.predict_success = counter("te_predict_success", "Texts and pairs scored, classified or tagged")
        self.request_duration = histogram("te_request_duration", "Seconds of a request", _SECONDS)
        self.tokenization_duration = histogram("te_request_tokenization_duration", "Seconds of tokenization", _SECONDS)
        self.queue_duration = histogram("te_request_queue_duration", "Seconds in the queue, mean over texts", _SECONDS)
        self.inference_duration = histogram("te_request_inference_duration", "Seconds in the engine, mean", _SECONDS)
        self.input_length = histogram("te_request_input_length", "Tokens per text", _LENGTHS)
        self.batch_size = histogram("te_batch_next_size", "Texts per batch", _SIZES)
        self.batch_tokens = histogram("te_batch_next_tokens", "Tokens per batch", _TOKENS)
        self.queue_size = self._sum("te_queue_size", "Texts waiting")

    def _declare_ours(self) -> None:
        counter = self._counter
        self.requests_in_flight = self._sum("bei_requests_in_flight", "Requests for the model, not yet answered")
        self.request_tokens = counter("bei_request_tokens", "Tokens of answered requests, after truncation")
        self.truncated_texts = counter("bei_truncated_texts", "Texts and pairs of which a part was not read")
        self.queue_tokens = self._sum("bei_queue_tokens", "Tokens waiting")
        self.batch_fill = self._histogram("bei_batch_fill", "Tokens of a batch divided by its budget", _SHARES)
        self.padded_tokens = counter("bei_padded_tokens", "Tokens, had each batch been padded to its longest text")
        self.engine_seconds = counter(
            "bei_engine_seconds", "Seconds in which the engine ran batches, summed over its streams"
        )
        self.engine_tokens = counter("bei_engine_tokens", "Tokens that the engine ran")
        self.engine_streams = self._maximum("bei_engine_streams", "Batches that the engine runs at once", "model")
        self.engine_restarts = counter("bei_engine_restarts", "Restarts of the engine after a crash")
        self.ready = self._maximum("bei_ready", "1 while the model answers requests, or a request loads it", "model")
        self.info = self._maximum(
            "bei_info", "Constant 1; the served model and its engine", "engine", "device", "precision", "model"
        )

    def _declare_devices(self) -> None:
        counter, maximum = self._counter, self._maximum
        self.device_batches = counter("bei_device_batches", "Batches that the device ran", "device")
        self.device_seconds = counter(
            "bei_device_seconds", "Seconds in which the device ran batches, summed over its streams", "device"
        )
        self.device_restarts = counter("bei_device_restarts", "Restarts of the device's engine after a crash", "device")
        self.device_streams = maximum("bei_device_streams", "Batches that the device runs at once", "device", "model")
        self.device_down = maximum(
            "bei_device_down", "1 while the device's engine restarts or stays down", "device", "model"
        )

    def _declare_server(self) -> None:
        self.requests = Counter(
            "bei_requests", "Calls answered, on every route", ["path", "status"], registry=self._registry
        )
        self.cancelled = Counter(
            "bei_cancelled", "Requests that were abandoned before their answer", ["reason"], registry=self._registry
        )
        self.job_lines = Counter(
            "bei_job_lines",
            "Lines of the Batch API that have their answer or error",
            ["status"],
            registry=self._registry,
        )
        self.jobs = self._maximum("bei_jobs", "Batches of the Batch API that have not ended")
        self.job_bytes = self._maximum("bei_job_bytes", "Bytes of the files of the Batch API")
        build = self._maximum("bei_build_info", "Constant 1; the version of bei and Python", "version", "python")
        build.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [*labels, "model"], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: list[float]) -> Histogram:
        return Histogram(name, text, ["model"], buckets=buckets, registry=self._registry)

    def _sum(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["model"], multiprocess_mode="livesum", registry=self._registry)

    def _maximum(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, multiprocess_mode="livemax", registry=self._registry)
