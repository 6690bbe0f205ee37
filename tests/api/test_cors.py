"""Pages of other origins: preflights without a key, and the answers that they may read."""

import json

import pytest

from bei.errors import SetupError
from bei.settings import Settings
from tests.support.calls import call
from tests.support.configs import tiny_config

PAGE, OTHER = "https://page.example", "https://other.example:8443"
BODY = {"inputs": "the cat"}


@pytest.fixture
def ours(start_service):
    return start_service(cors_allow_origin=(PAGE, "http://localhost:3000"), api_key="k1", protect_all=True)


@pytest.fixture
def anyones(start_service):
    return start_service(cors_allow_origin="*")


def preflight(service, path: str = "/embed", origin: str = PAGE, headers: str = "authorization, content-type"):
    asked = {"access_control_request_method": "POST", "access_control_request_headers": headers}
    return call(service, path, method="OPTIONS", origin=origin, **asked)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/health", "/nowhere"])
def test_a_preflight_is_answered_without_a_key(ours, path):
    reply = preflight(ours, path)
    assert (reply.status, reply.body) == (204, b"")
    headers = reply.headers
    assert headers["access-control-allow-origin"] == PAGE
    assert set(headers["access-control-allow-methods"].split(", ")) >= {"GET", "POST"}
    assert headers["access-control-allow-headers"] == "authorization, content-type"
    assert int(headers["access-control-max-age"]) > 0
    assert "origin" in headers["vary"].lower()


def test_any_origin(anyones):
    for origin in (PAGE, OTHER, "null"):
        assert preflight(anyones, origin=origin).headers["access-control-allow-origin"] == "*"
        assert call(anyones, "/embed", BODY, origin=origin).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", [OTHER, "https://page.example.evil.example", "http://page.example", "null", ""])
def test_other_origins_may_read_nothing(ours, origin):
    reply = preflight(ours, origin=origin)
    assert reply.status == 405
    answer = call(ours, "/embed", BODY, origin=origin, authorization="Bearer k1")
    for headers in (reply.headers, answer.headers):
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "origin"


def test_answers_and_errors_alike_may_be_read(ours):
    key = {"authorization": "Bearer k1", "origin": PAGE}
    replies = {
        200: call(ours, "/embed", BODY, **key),
        401: call(ours, "/embed", BODY, origin=PAGE),
        404: call(ours, "/nowhere", **key),
        422: call(ours, "/embed", {"inputs": 3}, **key),
    }
    for status, reply in replies.items():
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, PAGE)
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert "retry-after" in reply.headers["access-control-expose-headers"]
    packed = call(ours, "/embed", {"inputs": ["the cat"] * 200}, accept_encoding="gzip", **key)
    assert packed.headers["vary"] == "accept-encoding, origin"


def test_without_the_setting_nothing_is_said(start_service):
    service = start_service()
    reply = preflight(service)
    assert reply.status == 405
    assert "vary" not in reply.headers
    assert not [n for n in call(service, "/embed", BODY, origin=PAGE).headers if n.startswith("access-control")]


def test_what_a_page_asks_for_cannot_forge_a_header(anyones):
    for headers in ("a\r\nset-cookie: b", "a b", "é", ""):
        assert "access-control-allow-headers" not in preflight(anyones, headers=headers).headers


def test_an_options_that_is_no_preflight_is_refused(anyones):
    reply = call(anyones, "/embed", method="OPTIONS", origin=PAGE)
    assert reply.status == 405
    assert json.loads(reply.body)["error"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("*", ("*",)),
        ("https://A.example, http://b.example:80", ("https://a.example", "http://b.example:80")),
        (["https://a.example", "null"], ("https://a.example", "null")),
        ("chrome-extension://abc", ("chrome-extension://abc",)),
    ],
)
def test_origins(given, found):
    assert Settings.load(tiny_config(), environ={}, cors_allow_origin=given).cors_allow_origin == found


@pytest.mark.parametrize("wrong", ["https://a.example/", "a.example", "https://", "https://u:p@a.example", "", "x,*"])
def test_what_no_browser_sends_is_refused(wrong):
    with pytest.raises(SetupError, match="setting cors_allow_origin: an origin is such as https://"):
        Settings.load(tiny_config(), environ={}, cors_allow_origin=wrong)
