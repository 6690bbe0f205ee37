"""Traces: spans of a request in memory, and a whole server that sends them to a collector over a socket."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import httpx
import pytest
import yaml
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bei import cli, extras
from bei.serving.service import Service
from bei.tracing import Tracer
from tests.support.calls import TEXTS, call, give_up
from tests.support.configs import tiny_config
from tests.support.servers import ROOT, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
PHASES = ["tokenize", "queue", "infer", "post-process"]


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def service(start_service, exported) -> Iterator[Service]:
    """One whose spans are exported."""
    tracer = Tracer(SimpleSpanProcessor(exported), "tests")
    yield start_service(tracer=tracer)
    tracer.stop()


def test_nothing_is_imported_and_nothing_sent_unless_it_is_on():
    code = "import bei.cli, sys; sys.exit(any(name.startswith(('opentelemetry', 'grpc')) for name in sys.modules))"
    environment = {"PYTHONPATH": str(ROOT / "packages")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_no_context_goes_out_when_it_is_off(start_service):
    reply = call(start_service(), "/embed", {"inputs": "a"}, traceparent=PARENT)
    assert "traceresponse" not in reply.headers


def test_the_spans_of_a_request(service, exported):
    reply = call(service, "/embed", {"inputs": TEXTS}, traceparent=PARENT, x_request_id="req-1")
    *phases, request = exported.get_finished_spans()
    assert [span.name for span in phases] == PHASES
    assert (request.name, request.kind) == ("POST /embed", SpanKind.SERVER)
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN
    assert reply.headers["traceresponse"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "bei.request_id": "req-1",
        "bei.model": service.name,
        "bei.device": "any",
        "bei.texts": 2,
        "bei.tokens": 9,
    }
    assert all(span.parent.span_id == request.context.span_id for span in phases)
    edges = [request.start_time, *(time for span in phases for time in (span.start_time, span.end_time))]
    assert edges == sorted(edges)
    assert edges[-1] <= request.end_time + 1000  # nanoseconds, for the phases' times are sums of rounded ones


def test_a_request_without_a_context_begins_a_trace(service, exported):
    for header in ({}, {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}, {"traceparent": "junk"}):
        exported.clear()
        reply = call(service, "/embed", {"inputs": "a"}, **header)
        request = exported.get_finished_spans()[-1]
        assert request.parent is None
        assert reply.headers["traceresponse"].split("-")[1] == f"{request.context.trace_id:032x}"


def test_who_asked_not_to_be_traced_is_not(service, exported):
    reply = call(service, "/embed", {"inputs": "a"}, traceparent=PARENT[:-1] + "0")
    assert exported.get_finished_spans() == ()
    assert reply.headers["traceresponse"].endswith("-00")


def test_another_server_of_the_process_is_not_traced_with_it(start_service, service, exported):
    reply = call(start_service(), "/embed", {"inputs": "a"}, traceparent=PARENT)
    assert "traceresponse" not in reply.headers
    assert exported.get_finished_spans() == ()


def test_failures(service, exported, monkeypatch):
    call(service, "/embed", {"inputs": 3})
    refused = exported.get_finished_spans()[-1]
    assert (refused.attributes["http.response.status_code"], refused.status.status_code) == (422, StatusCode.UNSET)
    monkeypatch.setattr(type(service.model), "embed", None)
    call(service, "/embed", {"inputs": "a"})
    failed = exported.get_finished_spans()[-1]
    assert (failed.attributes["http.response.status_code"], failed.status.status_code) == (500, StatusCode.ERROR)


def test_a_call_that_is_given_up_has_its_span(service, exported):
    give_up(service)
    (request,) = exported.get_finished_spans()
    assert request.attributes["error.type"] == "cancelled"


# -- over a socket ---------------------------------------------------------------------------------------------------

Receive = Callable[[ExportTraceServiceRequest], None]


@contextmanager
def http_collector(receive: Receive) -> Iterator[str]:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receive(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def grpc_collector(receive: Receive) -> Iterator[str]:
    class Collector(TraceServiceServicer):
        def Export(self, request, context):
            receive(request)
            return ExportTraceServiceResponse()

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        add_TraceServiceServicer_to_server(Collector(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(("protocol", "collector"), [("grpc", grpc_collector), ("http/protobuf", http_collector)])
def test_a_server_sends_its_traces(tmp_path, tiny_folder, monkeypatch, protocol, collector):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "packages"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    received: list[ExportTraceServiceRequest] = []
    with collector(received.append) as endpoint:
        flags = ("--engine", "null", "--json-output", "--access-log", "--otlp-endpoint", endpoint)
        with serving(*flags, log=tmp_path / "log", config=config) as url:
            reply = httpx.post(f"{url}/embed", json={"inputs": "a"}, headers={"traceparent": PARENT})
    resources = [resource for request in received for resource in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    named = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    assert named.keys() == {"POST /embed", *PHASES}
    assert reply.headers["traceresponse"].split("-")[2] == named["POST /embed"].span_id.hex()
    assert {a.key: a.value.string_value for a in resources[0].resource.attributes}["service.name"] == "bei"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["message"] == "200 POST /embed"]
    assert (line["trace_id"], line["request_id"]) == (TRACE, reply.headers["x-request-id"])


def test_without_the_extra_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    flags = ["serve", "--config", str(ROOT / "config.yaml"), "--otlp-endpoint", "http://127.0.0.1:1"]
    result = CliRunner().invoke(cli.main, flags)
    assert (result.exit_code, result.stderr) == (2, f"bei: --otlp-endpoint needs an extra: {extras.install('otel')}\n")


def test_an_unknown_protocol_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    flags = ["serve", "--config", str(ROOT / "config.yaml"), "--otlp-endpoint", "http://127.0.0.1:1"]
    result = CliRunner().invoke(cli.main, flags)
    assert "OTEL_EXPORTER_OTLP_PROTOCOL='http/json': use grpc or http/protobuf" in result.stderr
