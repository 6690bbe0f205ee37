"""Metrics of one process and of several; names that dashboards of TEI query."""

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bei import metrics
from bei.errors import SetupError
from tests.support.exposition import TIMES, gained
from tests.support.servers import ROOT, free_port

TEI = """
te_request_count te_request_success te_request_failure te_embed_count te_embed_success te_predict_count
te_predict_success te_request_duration te_request_tokenization_duration te_request_queue_duration
te_request_inference_duration te_embed_duration te_embed_tokenization_duration te_embed_queue_duration
te_embed_inference_duration te_predict_duration te_predict_tokenization_duration te_predict_queue_duration
te_predict_inference_duration te_request_input_length te_batch_next_size te_batch_next_tokens te_queue_size
"""


def test_every_name_of_tei_is_there_as_tei_writes_it():
    for scored in (False, True):
        metrics.observe_answer(1, 7, scored=scored, **TIMES)
    kinds = dict(re.findall(r"^# TYPE (te_\w+) (\w+)$", metrics.exposition().decode(), re.MULTILINE))
    assert kinds.keys() == set(TEI.split())
    assert kinds["te_request_count"] == "counter"
    assert kinds["te_predict_queue_duration"] == "histogram"


def test_the_exposition_is_prometheus_own_format():
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert not any(name.endswith("_created") for name in names)
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}


def test_a_request_is_counted_once():
    new = gained(lambda: metrics.observe_answer(1, 7, scored=True, **TIMES))
    assert new['te_request_count{method="single"}'] == new['te_request_success{method="single"}'] == 1
    assert new["te_predict_count"] == new["te_predict_success"] == 1
    assert new["te_request_duration_count"] == new["te_predict_duration_count"] == 1
    assert new["te_request_queue_duration_sum"] == pytest.approx(0.01)
    assert new["te_predict_inference_duration_sum"] == pytest.approx(0.008)
    assert new["bei_request_tokens_total"] == 7
    assert "te_embed_count" not in new


def test_a_failure_is_counted_as_a_request_where_its_texts_are_known():
    new = gained(lambda: metrics.observe_failure(3, "overloaded", scored=False))
    assert new == {
        'te_request_failure{err="overloaded"}': 1,
        'te_request_count{method="batch"}': 1,
        "te_embed_count": 3,
    }
    assert gained(lambda: metrics.observe_failure(0, "validation", scored=False)).keys() == {
        'te_request_failure{err="validation"}'
    }


def test_how_well_a_batch_is_packed():
    new = gained(lambda: metrics.observe_packing(texts=3, tokens=60, longest=40, budget=100))
    assert new["bei_padded_tokens_total"] == 120
    assert new["bei_batch_fill_sum"] == pytest.approx(0.6)
    assert 'bei_batch_fill_bucket{le="0.6"}' in new
    assert 'bei_batch_fill_bucket{le="0.5"}' not in new


def test_a_port_of_its_own():
    port = free_port()
    metrics.listen("127.0.0.1", port)
    reply = httpx.get(f"http://127.0.0.1:{port}/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    assert b"te_request_count{" in reply.content or b"# TYPE te_request_count counter" in reply.content


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError, match=r"cannot serve metrics on 127\.0\.0\.1:.*--prometheus-port"):
            metrics.listen("127.0.0.1", taken.getsockname()[1])


PARENT = """
import subprocess, sys
from pathlib import Path
from bei import metrics

metrics.observe_batch(1, 1, 1.0)  # before: forgotten
metrics.observe_cancelled("deadline")
metrics.share(Path(sys.argv[1]))
metrics.observe_batch(2, 30, 0.5)
metrics.observe_engine("m", "null", "cpu", "fp32", 2)
metrics.observe_queue(4, 40)
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
workers = [subprocess.Popen([sys.executable, "-c", sys.argv[2]], **pipes) for _ in range(3)]
seen = [worker.stdout.readline() for worker in workers]
print(metrics.exposition().decode())
print("-- one is gone")
gone = workers.pop()
gone.communicate("")
metrics.forget(gone.pid)
print(metrics.exposition().decode())
for worker in workers:
    worker.communicate("")
"""
WORKER = """
import sys
import threading
import time
from bei import metrics

metrics.observe_answer(1, 7, scored=False, total=0.02, tokenization=0.001, queue=0.01, inference=0.008)
metrics.observe_reply("/embed", 200)
metrics.requests_in_flight.inc()
metrics.ready.set(1)
print("counted", flush=True)
sys.stdin.read()
"""


def test_processes_are_summed_and_the_dead_keep_their_counts(tmp_path):
    environment = {"PYTHONPATH": str(ROOT / "packages")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT, str(tmp_path), WORKER],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    while_three, after = (
        dict(line.rsplit(" ", 1) for line in part.splitlines() if line and not line.startswith(("#", "--")))
        for part in done.stdout.split("-- one is gone")
    )
    for seen in (while_three, after):
        assert seen['te_request_count{method="single"}'] == "3.0"
        assert seen["te_embed_duration_count"] == "3.0"
        assert seen['bei_requests_total{path="/embed",status="200"}'] == "3.0"
        assert seen["bei_engine_seconds_total"] == "0.5"
        assert seen["te_queue_size"] == "4.0"
        assert seen["bei_ready"] == "1.0"
        assert seen['bei_info{device="cpu",engine="null",model="m",precision="fp32"}'] == "1.0"
        assert sum(name.startswith("bei_build_info") for name in seen) == 1
        assert not any(name.startswith("bei_cancelled_total") for name in seen)
    assert (while_three["bei_requests_in_flight"], after["bei_requests_in_flight"]) == ("3.0", "2.0")


def test_silent_connections_to_the_port_have_a_bound(monkeypatch):
    monkeypatch.setattr(metrics, "_CONNECTION_SECONDS", 1.0)
    metrics.listen("127.0.0.1", port := free_port())
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(50)]
        ends = [sock.recv(1) for sock in silent[metrics.CONNECTIONS :]]  # closed at once
        assert threading.active_count() - before <= 2 * metrics.CONNECTIONS
        assert {*ends, *(sock.recv(1) for sock in silent)} == {b""}
    deadline, status = time.monotonic() + 20, 0
    while status != 200 and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            status = httpx.get(f"http://127.0.0.1:{port}/metrics").status_code
    assert status == 200
