"""Prometheus metrics, declared once: TEI's names kept (router/src/prometheus.rs), ours as bei_*; docs/operations.md has
the table. They are this process's own until `share` keeps them in files that all processes of a server add up.
"""

import os
import platform
import re
import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.exposition import ThreadingWSGIServer

from bei import __version__
from bei.errors import SetupError, address, why

disable_created_metrics()  # a series more for each of the others, which no query here needs

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS = 16  # at once, of the port for metrics
_CONNECTION_SECONDS = 10.0
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = [1.5e-5 * 1.5**k for k in range(35)]
_LENGTHS = [2.0**k for k in range(16)]
_SIZES = [2.0**k for k in range(13)]
_TOKENS = [2.0**k for k in range(21)]
_SHARES = [0.01, 0.02, 0.05, *(k / 10 for k in range(1, 11))]

Cancellation = Literal["disconnect", "deadline", "drain"]

request_count = Counter("te_request_count", "Requests to compute, answered or failed", ["method"])
request_success = Counter("te_request_success", "Requests answered", ["method"])
request_failure = Counter("te_request_failure", "Requests to compute that were refused or failed", ["err"])
embed_count = Counter("te_embed_count", "Texts to embed")
embed_success = Counter("te_embed_success", "Texts embedded")
predict_count = Counter("te_predict_count", "Texts and pairs to score, classify or tag")
predict_success = Counter("te_predict_success", "Texts and pairs scored, classified or tagged")
request_duration = Histogram("te_request_duration", "Seconds to compute a request", buckets=_SECONDS)
tokenization_duration = Histogram("te_request_tokenization_duration", "Seconds to tokenize", buckets=_SECONDS)
queue_duration = Histogram("te_request_queue_duration", "Seconds waiting, mean over texts", buckets=_SECONDS)
inference_duration = Histogram("te_request_inference_duration", "Seconds in the engine, mean", buckets=_SECONDS)
input_length = Histogram("te_request_input_length", "Tokens a text", buckets=_LENGTHS)
batch_size = Histogram("te_batch_next_size", "Texts a batch", buckets=_SIZES)
batch_tokens = Histogram("te_batch_next_tokens", "Tokens a batch", buckets=_TOKENS)
queue_size = Gauge("te_queue_size", "Texts waiting", multiprocess_mode="livesum")

requests = Counter("bei_requests", "Calls answered, of every route", ["path", "status"])
requests_in_flight = Gauge("bei_requests_in_flight", "Requests to compute, not answered", multiprocess_mode="livesum")
cancelled = Counter("bei_cancelled", "Requests given up before their answer", ["reason"])
request_tokens = Counter("bei_request_tokens", "Tokens read: of the texts of requests answered, after truncation")
queue_tokens = Gauge("bei_queue_tokens", "Tokens waiting", multiprocess_mode="livesum")
batch_fill = Histogram("bei_batch_fill", "Tokens of a batch over its budget", buckets=_SHARES)
padded_tokens = Counter("bei_padded_tokens", "Tokens that padding each batch to its longest text would have run")
engine_seconds = Counter("bei_engine_seconds", "Seconds the engine was running batches, summed over its streams")
engine_tokens = Counter("bei_engine_tokens", "Tokens the engine has run")
engine_streams = Gauge("bei_engine_streams", "Batches the engine runs at once", multiprocess_mode="livemax")
engine_restarts = Counter("bei_engine_restarts", "Engines started again after one died")
ready = Gauge("bei_ready", "1 when the server answers requests", multiprocess_mode="livemax")
info = Gauge(
    "bei_info",
    "Constant 1; what is served, and by which engine",
    ["model", "engine", "device", "precision"],
    multiprocess_mode="livemax",
)
build_info = Gauge("bei_build_info", "Constant 1; which build", ["version", "python"], multiprocess_mode="livemax")
_BUILD = (__version__, platform.python_version())
build_info.labels(*_BUILD).set(1)

_DECLARED = [named for named in globals().values() if isinstance(named, Counter | Gauge | Histogram)]


@cache
def _child(metric: Counter, *labels: object) -> Counter:
    """`metric.labels`, which takes longer than to count."""
    return metric.labels(*labels)


def observe_engine(model: str, engine: str, device: str, precision: str, streams: int) -> None:
    """What is served, and by what."""
    info.labels(model, engine, device, precision).set(1)
    engine_streams.set(streams)


def observe_batch(texts: int, tokens: int, seconds: float) -> None:
    """One batch that the engine finished."""
    batch_size.observe(texts)
    batch_tokens.observe(tokens)
    engine_seconds.inc(seconds)
    engine_tokens.inc(tokens)


def observe_packing(texts: int, tokens: int, longest: int, budget: int) -> None:
    """How full one batch was; `longest`, its longest text, and `budget` are in tokens."""
    batch_fill.observe(tokens / budget)
    padded_tokens.inc(texts * longest)


def observe_queue(texts: int, tokens: int) -> None:
    """What waits now."""
    queue_size.set(texts)
    queue_tokens.set(tokens)


def observe_answer(
    texts: int, tokens: int, *, scored: bool, total: float, tokenization: float, queue: float, inference: float
) -> None:
    """One request answered; times in seconds, of the queue and the engine in the mean over its texts."""
    method = _method(texts)
    _child(request_count, method).inc()
    _child(request_success, method).inc()
    for counter in (predict_count, predict_success) if scored else (embed_count, embed_success):
        counter.inc(texts)
    request_tokens.inc(tokens)
    request_duration.observe(total)
    tokenization_duration.observe(tokenization)
    queue_duration.observe(queue)
    inference_duration.observe(inference)


def observe_failure(texts: int, cause: str, *, scored: bool) -> None:
    """One request that was refused or failed; `texts` is 0 where it could not be read, `cause` one of TEI's words."""
    _child(request_failure, cause).inc()
    if texts:
        _child(request_count, _method(texts)).inc()
        (predict_count if scored else embed_count).inc(texts)


def observe_reply(path: str, status: int) -> None:
    """One call answered; `path` is a route's, or `other`."""
    _child(requests, path, status).inc()


def observe_cancelled(reason: Cancellation) -> None:
    """One request given up: its client left, its deadline passed, or the server stopped."""
    _child(cancelled, reason).inc()


def _method(texts: int) -> str:
    return "single" if texts == 1 else "batch"


def share(folder: Path) -> None:
    """Count in files of `folder`, empty at first, from now on: in this process, and in those it starts. The exposition
    of each is then of all of them. What was counted before is lost."""
    for metric in _DECLARED:
        metric.clear()
    _child.cache_clear()
    os.environ[_FOLDER] = str(folder)
    values.ValueClass = values.get_value_class()
    for metric in _DECLARED:
        if not metric._labelnames:
            metric._metric_init()  # there is no public way to move a metric once it is declared
    build_info.labels(*_BUILD).set(1)


def forget(pid: int) -> None:
    """A process that shared has ended: its gauges go, its counts stay in the sums."""
    multiprocess.mark_process_dead(pid)


def exposition() -> bytes:
    """Every metric in Prometheus' text format, and in TEI's way where the name is TEI's.

    Its counters are without `_total`; and te_embed_* or te_predict_* durations are those of te_request_*, for a server
    has one model, of one task.
    """
    registry = REGISTRY
    if _FOLDER in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    text = _TEI_COUNTER.sub(rb"\1", generate_latest(registry))
    durations = _TEI_DURATION.findall(text)
    for task in (b"embed", b"predict"):
        if b"\nte_%s_count 0.0\n" % task not in text:
            text += b"".join(line.replace(b"te_request", b"te_" + task, 1) for line in durations)
    return text


_renderer = ThreadPoolExecutor(1, "exposition")
_lock = threading.Lock()
_next: Future[bytes] | None = None


def shared_exposition() -> Future[bytes]:
    """One that has not begun, from a thread: whoever asks before it begins shares it, however many they are."""
    global _next
    with _lock:
        if _next is None:
            _next = _renderer.submit(_begin)
        return _next


def _begin() -> bytes:
    global _next
    with _lock:
        _next = None
    return exposition()


_TEI_COUNTER = re.compile(rb"^((?:# (?:HELP|TYPE) )?te_\w+)_total\b", re.MULTILINE)
_TEI_DURATION = re.compile(rb"^(?:# (?:HELP|TYPE) )?te_request_(?:[a-z]+_)?duration.*\n", re.MULTILINE)


def listen(host: str, port: int) -> None:
    """Serve the exposition on a port of its own, too, from a thread. Raises SetupError."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("content-type", CONTENT_TYPE)])
        return [shared_exposition().result()]

    try:
        server = make_server(host, port, application, _Ipv6 if ":" in host else _Bounded, _Silent)
    except (OSError, OverflowError) as exc:
        place = address(host, port)
        raise SetupError(f"cannot serve metrics on {place}: {why(exc)}; choose another --prometheus-port") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Bounded(ThreadingWSGIServer):
    """Has so many connections at once, for so long each; one too many is closed."""

    request_queue_size = 64

    def __init__(self, *of_wsgi: Any):
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*of_wsgi)

    def process_request(self, request: Any, client: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client: Any) -> None:
        end = threading.Timer(_CONNECTION_SECONDS, _hang_up, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: Any, client: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # its client is not there any more
            super().handle_error(request, client)


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Ipv6(_Bounded):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
