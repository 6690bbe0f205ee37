"""Prometheus metrics, declared once: TEI's names kept (router/src/prometheus.rs), ours as bei_*."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

_SECONDS = [1.5e-5 * 1.5**k for k in range(35)]
_LENGTHS = [2.0**k for k in range(16)]
_SIZES = [2.0**k for k in range(13)]
_TOKENS = [2.0**k for k in range(21)]

request_count = Counter("te_request_count", "Requests received", ["method"])
request_success = Counter("te_request_success", "Requests answered", ["method"])
request_failure = Counter("te_request_failure", "Requests refused or failed", ["err"])
embed_count = Counter("te_embed_count", "Texts to embed")
embed_success = Counter("te_embed_success", "Texts embedded")
predict_count = Counter("te_predict_count", "Texts and pairs to score, classify or tag")
predict_success = Counter("te_predict_success", "Texts and pairs scored, classified or tagged")
request_duration = Histogram("te_request_duration", "Seconds from arrival to answer", buckets=_SECONDS)
tokenization_duration = Histogram("te_request_tokenization_duration", "Seconds to tokenize", buckets=_SECONDS)
queue_duration = Histogram("te_request_queue_duration", "Seconds waiting, mean over texts", buckets=_SECONDS)
inference_duration = Histogram("te_request_inference_duration", "Seconds in the engine, mean", buckets=_SECONDS)
input_length = Histogram("te_request_input_length", "Tokens a text", buckets=_LENGTHS)
batch_size = Histogram("te_batch_next_size", "Texts a batch", buckets=_SIZES)
batch_tokens = Histogram("te_batch_next_tokens", "Tokens a batch", buckets=_TOKENS)
queue_size = Gauge("te_queue_size", "Texts waiting")
engine_seconds = Counter("bei_engine_seconds", "Seconds the engine was running batches")
engine_tokens = Counter("bei_engine_tokens", "Tokens the engine has run")
engine_restarts = Counter("bei_engine_restarts", "Engine processes that died and were replaced")
ready = Gauge("bei_ready", "1 when the server answers requests")
info = Gauge("bei_info", "Constant 1; what is served, and by which engine", ["model", "engine", "device", "precision"])


def observe_batch(texts: int, tokens: int, seconds: float) -> None:
    """One batch that the engine finished."""
    batch_size.observe(texts)
    batch_tokens.observe(tokens)
    engine_seconds.inc(seconds)
    engine_tokens.inc(tokens)


def observe_texts(texts: int, *, scored: bool) -> None:
    """One request answered, of that many texts."""
    method = "single" if texts == 1 else "batch"
    request_count.labels(method).inc()
    request_success.labels(method).inc()
    for counter in (predict_count, predict_success) if scored else (embed_count, embed_success):
        counter.inc(texts)


def exposition() -> bytes:
    """Every metric in Prometheus' text format."""
    return generate_latest(REGISTRY)
