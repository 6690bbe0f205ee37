"""The metrics, log line and trace of one call."""

import asyncio
import logging
import time
from difflib import get_close_matches
from typing import Any, Self

from bei import logs, tracing
from bei.api.call import Call
from bei.api.fields import CHANGING
from bei.api.reply import Reply
from bei.errors import Error, Expired, ModelNotFound, Overloaded, TooLarge, Untokenizable, WrongTask, short
from bei.serving.answers import Usage
from bei.serving.model import ServedModel
from bei.serving.registry import Registry
from bei.serving.service import Service

log = logging.getLogger("bei")


class Observation:
    """The context in which a call is answered. `path` is the path of its route, or `other`, which bounds the number of
    metrics."""

    def __init__(self, registry: Registry, call: Call, path: str):
        self._registry, self._metrics = registry, registry.metrics
        self._call, self._path = call, path
        self._computing: Service | None = None
        self._started = call.arrived
        self._texts = 0
        self._usage: Usage | None = None
        self._trace = self._begin_trace(registry.tracer) if registry.tracer else None
        logs.about(call.request_id, self._trace.id if self._trace else tracing.trace_id(call.headers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._computing is not None:
            self._computing.model_metrics.requests_in_flight.dec()
        if self._trace and kind is asyncio.CancelledError:
            self._trace.end(time.monotonic(), {"error.type": "cancelled"}, failed=True)

    def computing(self, service: Service, name: str | None) -> None:
        """Marks that the body is read and the model's work begins. `name` is the request's own for the model."""
        self._computing = service
        service.model_metrics.requests_in_flight.inc()
        logs.about_model(service.name, service.devices)
        self._started = time.monotonic()
        if name is not None and not self._registry.has_name(name) and self._registry.unknown_models.is_new(short(name)):
            log.info("a request names the model %s; the only one that is served answers it", short(name))

    def answered(self, model: ServedModel, texts: int, usage: Usage) -> None:
        self._texts, self._usage = texts, usage
        model.metrics.observe_answer(
            texts,
            usage.tokens,
            scored=model.has_labels,
            truncated_texts=usage.truncated_texts,
            is_background=self._call.is_background,
            total=usage.total,
            tokenization=usage.tokenization,
            queue=usage.queue,
            inference=usage.inference,
        )

    def failed(self, service: Service | None, fault: BaseException, body: Any) -> None:
        """Counts a failed request. `body` is the parsed body, or None; `service` is None for a model that is not
        served."""
        if service is None:
            self._metrics.observe_unresolved(_cause(fault))
        else:
            texts = 0 if body is None else _texts(body)
            service.model_metrics.observe_failure(texts, _cause(fault), scored=service.has_labels)
        if isinstance(fault, Expired):
            self._metrics.observe_cancelled("deadline")

    def replied(self, reply: Reply) -> Reply:
        """The reply as it is sent; with tracing it carries the context of the trace."""
        self._metrics.observe_reply(self._path, reply.status)
        if self._call.unknown:
            self._tell_unknown()
        now = time.monotonic()
        if logs.access.isEnabledFor(logging.INFO) and (self._call.method == "POST" or reply.status >= 400):
            self._log(reply, now)
        if self._trace is None:
            return reply
        self._finish_trace(self._trace, reply, now)
        return reply.with_headers({"traceresponse": self._trace.response})

    def _tell_unknown(self) -> None:
        """The log names a field once; clients send the same ones again and again."""
        for name in sorted(self._call.unknown):
            if self._registry.unknown_fields.is_new(short(name)):
                near = get_close_matches(name[:64], CHANGING, 1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                log.info(
                    "the field %s of %s is ignored: the route has none of that name%s", short(name), self._path, hint
                )

    def _log(self, reply: Reply, now: float) -> None:
        fields: dict[str, Any] = {"seconds": round(now - self._call.arrived, 6)}
        if self._call.client:
            fields["client"] = self._call.client
        if self._usage is not None:
            fields |= {
                "tokenization_seconds": round(self._usage.tokenization, 6),
                "queue_seconds": round(self._usage.queue, 6),
                "inference_seconds": round(self._usage.inference, 6),
                "texts": self._texts,
                "truncated_texts": self._usage.truncated_texts,
                "tokens": self._usage.tokens,
            }
        level = logging.WARNING if reply.status >= 500 else logging.INFO
        request = {"status": reply.status, "method": self._call.method, "path": self._call.path}
        logs.access.log(level, "%(status)d %(method)s %(path)s", request, extra={"fields": fields})

    def _begin_trace(self, tracer: tracing.Tracer) -> tracing.Trace:
        call = self._call
        attributes = {"http.request.method": call.method, "http.route": self._path, "bei.request_id": call.request_id}
        return tracer.begin(f"{call.method} {self._path}", call.headers, call.arrived, attributes)

    def _finish_trace(self, trace: tracing.Trace, reply: Reply, now: float) -> None:
        attributes: dict[str, Any] = {"http.response.status_code": reply.status}
        if self._computing is not None:
            attributes |= {"bei.model": self._computing.name, "bei.device": self._computing.devices}
        if self._usage is not None:
            attributes |= {"bei.texts": self._texts, "bei.tokens": self._usage.tokens}
            moment = self._started
            for name, seconds in (
                ("tokenize", self._usage.tokenization),
                ("queue", self._usage.queue),
                ("infer", self._usage.inference),
            ):
                trace.phase(name, moment, seconds)
                moment += seconds
            computed = self._started + self._usage.total
            trace.phase("post-process", computed, now - computed)
        trace.end(now, attributes, failed=reply.status >= 500)


def _texts(read: Any) -> int:
    """The number of texts of a failed request, estimated without its dialect: the length of the longest list in the
    body."""
    if isinstance(read, list):
        return len(read)
    return max(map(_texts, vars(read).values()), default=1) if hasattr(read, "__dict__") else 1


def _cause(fault: BaseException) -> str:
    """TEI's label for a failed request."""
    match fault:
        case TooLarge():
            return "batch_size"
        case Overloaded():
            return "overloaded"
        case Untokenizable():
            return "tokenization"
        case WrongTask():
            return "model_type"
        case Expired() | asyncio.CancelledError():
            return "dropped"
        case Error(kind="Validation" | "Empty") | ModelNotFound():
            return "validation"
        case _:
            return "inference"
