"""OpenTelemetry traces over OTLP. The SDK is imported only when a Tracer is made.

The spans of a request are made after its end, from times that are measured in any case. The context comes in as W3C
`traceparent`, and goes out as `traceresponse` (w3c.github.io/trace-context, "Trace Context HTTP Response Headers").
"""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from bei import extras
from bei.errors import SetupError, short

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


class Tracer:
    """The destination of the spans of one server's requests."""

    def __init__(self, processor: Any, service_name: str):
        """Every span goes to an OpenTelemetry SpanProcessor. OTEL_TRACES_SAMPLER and similar variables apply."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bei")

    def begin(self, name: str, headers: Mapping[str, str], arrived: float, attributes: Mapping[str, Any]) -> "Trace":
        """The trace of a request that arrived at a time.monotonic()."""
        return Trace(self._tracer, name, headers, arrived, attributes)

    def stop(self) -> None:
        """Sends the remaining spans, and none after."""
        self._provider.shutdown()


def to_collector(endpoint: str, service_name: str) -> Tracer:
    """Sends the trace of every request to a collector: by gRPC, as TEI does, or to `endpoint`/v1/traces where
    OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf. Raises SetupError."""
    protocol = os.environ.get(_PROTOCOL, "grpc")
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

        match protocol:
            case "grpc":
                from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

                exporter: SpanExporter = grpc.OTLPSpanExporter(endpoint=endpoint)
            case "http/protobuf":
                from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

                exporter = http.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
            case _:
                raise SetupError(f"{_PROTOCOL}={short(protocol)}: use grpc or http/protobuf")
    except ImportError:
        raise SetupError(f"--otlp-endpoint needs an extra: {extras.install('otel')}") from None
    return Tracer(BatchSpanProcessor(exporter), service_name)


def trace_id(headers: Mapping[str, str]) -> str | None:
    """The caller's trace id, whether or not we trace."""
    found = _TRACEPARENT.match(headers["traceparent"]) if "traceparent" in headers else None
    return found[1] if found else None


class Trace:
    """The spans of one request. Every time is a time.monotonic()."""

    def __init__(
        self, tracer: Any, name: str, headers: Mapping[str, str], arrived: float, attributes: Mapping[str, Any]
    ):
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._tracer = trace, tracer
        self._epoch = time.time() - time.monotonic()
        parent = TraceContextTextMapPropagator().extract(headers)
        at = self._nanoseconds(arrived)
        self._span = tracer.start_span(name, parent, trace.SpanKind.SERVER, dict(attributes), start_time=at)
        self._within = trace.set_span_in_context(self._span, parent)
        context = self._span.get_span_context()
        self.id = trace.format_trace_id(context.trace_id)
        self.response = f"00-{self.id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"

    def phase(self, name: str, started: float, seconds: float) -> None:
        """Adds a span within the request's, unless the sampler dropped that one."""
        if not self._span.is_recording():
            return
        span = self._tracer.start_span(name, self._within, start_time=self._nanoseconds(started))
        span.end(self._nanoseconds(started + seconds))

    def end(self, ended: float, attributes: Mapping[str, Any], *, failed: bool) -> None:
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(self._api.StatusCode.ERROR)
        self._span.end(self._nanoseconds(ended))

    def _nanoseconds(self, moment: float) -> int:
        return round((self._epoch + moment) * 1e9)
