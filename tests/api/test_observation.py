"""A call as operators see it: counted once, logged on one line, and impossible to forge for its client."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from bei import api, logs
from bei.api import Call
from bei.engines.null import NullEngine
from bei.errors import ClientGone, TooLarge
from bei.serving.registry import Registry
from tests.support.calls import TEXTS, call, give_up
from tests.support.exposition import gained

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def service(start_service):
    return start_service(max_client_batch_size=3)


@pytest.fixture(params=["text", "json"])
def lines(request, monkeypatch) -> Iterator[io.StringIO]:
    """The output of `logs.to_stderr`, with a line for each request."""
    root, written = logging.getLogger(), io.StringIO()
    kept, root.handlers = root.handlers, []
    monkeypatch.setattr("sys.stderr", written)
    logs.to_stderr("info", as_json=request.param == "json", requests=True)
    yield written
    root.handlers, logs.access.disabled = kept, True


@pytest.mark.parametrize(
    ("path", "body", "status", "failure", "texts"),
    [
        ("/embed", {"inputs": TEXTS}, 200, None, 2),
        ("/embed", {"inputs": ["a"] * 4}, 413, "batch_size", 4),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"] * 9}}, 413, "batch_size", 9),
        ("/predict", {"inputs": [["a"], ["b"]]}, 424, "model_type", 2),
        ("/embed", {"inputs": "a", "prompt_name": "absent"}, 422, "validation", 1),
        ("/embed", {"inputs": 3}, 422, "validation", 0),
        ("/no/such/path", {}, 404, None, 0),
    ],
)
def test_every_call_is_counted_once(service, path, body, status, failure, texts):
    new = gained(service.metrics, lambda: call(service, path, body))
    label = path if status != 404 else "other"
    assert new.pop(f'bei_requests_total{{path="{label}",status="{status}"}}') == 1
    assert new.get(f'te_request_failure{{err="{failure}",model="tiny"}}') == (1 if failure else None)
    assert new.get('te_embed_count{model="tiny"}', 0) == texts
    assert new.get('te_embed_success{model="tiny"}', 0) == (texts if status == 200 else 0)
    method = "single" if texts == 1 else "batch"
    assert new.get(f'te_request_count{{method="{method}",model="tiny"}}', 0) == bool(texts)
    assert 'bei_requests_in_flight{model="tiny"}' not in new


def test_probes_are_no_requests_to_compute(service):
    service.drain()
    new = gained(service.metrics, lambda: call(service, "/health", method="GET"))
    assert new.keys() == {'bei_requests_total{path="/health",status="503"}'}


def test_a_fault_of_ours_is_an_inference_failure(service, monkeypatch):
    monkeypatch.setattr(type(service.model), "embed", None)
    new = gained(service.metrics, lambda: call(service, "/embed", {"inputs": "a"}))
    assert new['te_request_failure{err="inference",model="tiny"}'] == 1
    assert new['bei_requests_total{path="/embed",status="500"}'] == 1


def test_deadlines_are_cancellations(service):
    new = gained(service.metrics, lambda: call(service, "/embed", {"inputs": "a"}, request_timeout_ms="0"))
    assert new['bei_cancelled_total{reason="deadline"}'] == new['te_request_failure{err="dropped",model="tiny"}'] == 1


def test_a_call_that_is_cancelled_is_no_longer_in_flight(start_service, tiny_checkpoint):
    service = start_service(NullEngine(tiny_checkpoint))
    new = gained(service.metrics, lambda: give_up(service))
    assert new['te_request_failure{err="dropped",model="tiny"}'] == 1
    assert 'bei_requests_in_flight{model="tiny"}' not in new


def test_what_the_host_says_is_counted_too(start_service):
    service, small, large = start_service(), Call("POST", "/embed"), TooLarge("big")
    new = gained(
        service.metrics,
        lambda: (
            asyncio.run(api.refuse(Registry(service), small, large)),
            api.lost(Registry(service), small, ClientGone("gone")),
        ),
    )
    assert new['bei_requests_total{path="/embed",status="413"}'] == 1
    assert new['bei_requests_total{path="/embed",status="499"}'] == new['bei_cancelled_total{reason="disconnect"}'] == 1


@pytest.mark.parametrize("given", ["req-1", "a" * 128])
def test_a_client_s_request_id_is_echoed(service, given):
    assert call(service, "/health/live", method="GET", x_request_id=given).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "a" * 129, "é", "\x1b[2J"])
def test_an_id_that_does_not_fit_a_line_is_replaced(service, given):
    assert len(call(service, "/health/live", method="GET", x_request_id=given).headers["x-request-id"]) == 32


def test_a_line_for_each_request(service, lines):
    call(service, "/embed", {"inputs": TEXTS}, x_request_id="req-1", traceparent=PARENT)
    call(service, "/embed", {"inputs": 3}, x_request_id="req-2")
    call(service, "/health", method="GET", x_request_id="req-3")
    first, second = lines.getvalue().splitlines()
    for said in ("200 POST /embed", "req-1", "0af7651916cd43dd8448eb211c80319c", "queue_seconds", "tokens"):
        assert said in first
    assert "422 POST /embed" in second
    assert "req-2" in second
    if first.startswith("{"):
        line = json.loads(first)
        assert line["message"] == f"{line['status']} {line['method']} {line['path']}" == "200 POST /embed"
        assert {"timestamp", "level", "seconds", "queue_seconds", "texts", "tokens", "request_id"} <= line.keys()
        assert {name for name, value in line.items() if not isinstance(value, int | float | str)} == set()
        assert all(isinstance(line[name], float) for name in line if name.endswith("seconds"))
        assert all(isinstance(line[name], int) for name in ("status", "texts", "truncated_texts", "tokens"))
        assert line["seconds"] >= line["queue_seconds"] + line["inference_seconds"] > 0
        assert (line["model"], line["device"]) == ("tiny", "any")
    else:
        assert "model=tiny device=any request_id=req-1" in first
    assert "tiny" not in second  # its body names no model that could be read


def test_a_text_that_was_cut_is_visible(service, lines):
    def embed(*texts: str) -> str | None:
        return call(service, "/embed", {"inputs": texts}).headers.get("x-truncated-texts")

    new = gained(service.metrics, lambda: [embed("the cat", "the cat " * 100), embed("the cat " * 100)])
    assert new['bei_truncated_texts_total{model="tiny"}'] == 2
    assert [embed("the cat " * 100, "a", "a big dog " * 100), embed("a")] == ["2", None]
    written = [re.search(r'truncated_texts(?:=|": )(\d+)', line)[1] for line in lines.getvalue().splitlines()]
    assert written == ["1", "1", "2", "0"]


def test_no_line_unless_asked_for(service, lines):
    logs.access.disabled = True
    call(service, "/embed", {"inputs": TEXTS})
    assert lines.getvalue() == ""


def test_what_a_client_sends_forges_no_line(service, lines, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a\n12:00:00 INFO forged\x1b[2J")

    monkeypatch.setattr(type(service.model), "embed", fail)
    call(service, "/embed", {"inputs": "a"}, x_request_id="req-1")
    call(service, "/a\r\n12:00:00 INFO forged\u2028\u202e\x1b[2J", {"inputs": "a"})
    written = lines.getvalue()
    assert "forged" in written
    assert not any(line.startswith("12:00:00 INFO forged") for line in written.splitlines())
    assert not set(written) & set("\x1b\r\u2028\u202e")
    fault = next(line for line in written.splitlines() if "unexpected fault" in line)
    assert "req-1" in fault
