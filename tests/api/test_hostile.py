"""Requests of hostile clients to bei.api.answer: without a key, compressed, deep, huge, or aimed at a header or a
log."""

import gzip
import re

import pytest

from bei.api import ROUTES, Call
from bei.api import call as calls
from bei.engines.null import NullEngine
from bei.errors import Unauthorized
from bei.server import app
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.calls import call
from tests.support.configs import tiny_config


@pytest.fixture
def service(start_service):
    return start_service()


PUBLIC = (
    "/",
    "/docs",
    "/health",
    "/health/live",
    "/health/ready",
    "/ping",
    "/metrics",
    "/v1/health/live",
    "/v1/health/ready",
)


@pytest.mark.parametrize("keys", ["k1", "k0, k1,k2"])
def test_keys(tiny_checkpoint, keys):
    service = Service(Settings.load(tiny_config(), environ={}, api_key=keys))
    service.start(tiny_checkpoint, NullEngine(tiny_checkpoint))
    body = {"inputs": "a"}
    for header in ("Bearer k1", "Api-Key k1", "bearer k1"):
        assert call(service, "/embed", body, authorization=header).status == 200
    for header in ("Bearer k3", "Bearer k", "Bearer k0,k1", "Bearer", "Bearer ", "k1", "Basic k1", ""):
        assert call(service, "/embed", body, authorization=header).status == 401
    for route in ROUTES:
        refused = call(service, route.path, method=route.method).status == 401
        assert refused == (route.method == "POST" or route.path not in PUBLIC), route.path
    service.close()


def test_a_key_for_everything(tiny_checkpoint):
    service = Service(Settings.load(tiny_config(), environ={}, api_key="k1", protect_all=True))
    service.start(tiny_checkpoint, NullEngine(tiny_checkpoint))
    assert {call(service, route.path, method=route.method).status for route in ROUTES} == {401}
    assert call(service, "/metrics", method="GET", authorization="Bearer k1").status == 200
    service.close()


def test_every_key_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(calls.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    settings = Settings.load(tiny_config(), environ={}, api_key="k0,k1,k2")
    calls.authorize(Call("GET", "/info", headers={"authorization": "Bearer k0"}), settings)
    assert compared == [b"k0", b"k1", b"k2"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate", "identity, gzip"])
def test_a_compressed_body_is_refused_unread(service, encoding):
    bomb = gzip.compress(b" " * 10_000_000)
    reply = call(service, "/embed", bomb, content_encoding=encoding)
    assert (reply.status, "send the body as it is" in reply.body.decode()) == (415, True)
    assert call(service, "/embed", {"inputs": "a"}, content_encoding="identity").status == 200


@pytest.mark.parametrize("given", [("Bearer k1", "Bearer k2"), ("Bearer k2", "Bearer k1"), ("Bearer k1", "Bearer k1")])
def test_two_keys_are_none(given):
    """A proxy and the server might choose different headers."""
    settings = Settings.load(tiny_config(), environ={}, api_key="k1")
    headers = [(name, key.encode()) for name, key in zip((b"authorization", b"Authorization"), given, strict=True)]
    scope = {"method": "GET", "path": "/info", "headers": headers}
    with pytest.raises(Unauthorized):
        calls.authorize(app._call_of(scope), settings)
    calls.authorize(app._call_of({**scope, "headers": headers[given[0] != "Bearer k1" :][:1]}), settings)


DEEP = b"[" * 100_000
HOSTILE = [
    DEEP,
    b'{"inputs": ' + DEEP + b"]" * 100_000 + b"}",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"inputs": 1' + b"0" * 100_000 + b"}",
    b'{"inputs": [' + b"9" * 400 + b"]}",
    b'{"inputs": [[1e999]]}',
    b'{"inputs": "a", "truncation_direction": "' + b"x" * 100_000 + b'"}',
    b'{"inputs": "a", "prompt_name": "' + b"x" * 100_000 + b'"}',
    b'{"inputs": NaN}',
    b'{"inputs": "\\ud800"}',
    b"\xff\xfe{}",
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:24]))
def test_hostile_json_is_a_short_refusal(service, body):
    reply = call(service, "/embed", body)
    assert reply.status in (400, 413, 422)
    assert len(reply.body) < 4096


def test_error_quotes_are_short(service):
    assert len(call(service, "/" + "x" * 60_000, method="GET").body) < 4096
    assert len(call(service, "/embed", {"inputs": "a"}, content_type="x" * 60_000).body) < 4096
    assert len(call(service, "/embed", {"inputs": "a"}, request_timeout_ms="x" * 60_000).body) < 4096


@pytest.mark.parametrize("given", ["", "a\r\nset-cookie: b=c", "a\nb", "\x00", "\x1b[2J", "é", "x" * 129])
def test_a_request_id_that_does_not_fit_a_header_is_not_echoed(service, given):
    headers = call(service, "/embed", b"{", x_request_id=given, x_baseten_customer_request_id=given).headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert "x-baseten-customer-request-id" not in headers
