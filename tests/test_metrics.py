"""Metrics of one process and of several; names that dashboards of TEI query."""

import re
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress

import httpx
import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from bei.errors import SetupError
from bei.metrics import CONTENT_TYPE, Metrics, ModelMetrics, port
from tests.support.exposition import TIMES, gained
from tests.support.servers import ROOT, free_port
from tests.support.waiting import wait_until

TEI = """
te_request_count te_request_success te_request_failure te_embed_count te_embed_success te_predict_count
te_predict_success te_request_duration te_request_tokenization_duration te_request_queue_duration
te_request_inference_duration te_embed_duration te_embed_tokenization_duration te_embed_queue_duration
te_embed_inference_duration te_predict_duration te_predict_tokenization_duration te_predict_queue_duration
te_predict_inference_duration te_request_input_length te_batch_next_size te_batch_next_tokens te_queue_size
"""


def test_every_name_of_tei_is_there_as_tei_writes_it():
    model = Metrics().of_model("m")
    for scored in (False, True):
        model.observe_answer(1, 7, scored=scored, **TIMES)
    kinds = dict(re.findall(r"^# TYPE (te_\w+) (\w+)$", model.server.exposition().decode(), re.MULTILINE))
    assert kinds.keys() == set(TEI.split())
    assert kinds["te_request_count"] == "counter"
    assert kinds["te_predict_queue_duration"] == "histogram"


def test_the_exposition_is_prometheus_own_format():
    families = list(text_string_to_metric_families(Metrics().exposition().decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert not any(name.endswith("_created") for name in names)
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}


@pytest.fixture
def model() -> ModelMetrics:
    return Metrics().of_model("m")


def test_a_request_is_counted_once(model):
    new = gained(model.server, lambda: model.observe_answer(1, 7, scored=True, **TIMES))
    single = '{method="single",model="m"}'
    assert new[f"te_request_count{single}"] == new[f"te_request_success{single}"] == 1
    assert new['te_predict_count{model="m"}'] == new['te_predict_success{model="m"}'] == 1
    assert new['te_request_duration_count{model="m"}'] == new['te_predict_duration_count{model="m"}'] == 1
    assert new['te_request_queue_duration_sum{model="m"}'] == pytest.approx(0.01)
    assert new['te_predict_inference_duration_sum{model="m"}'] == pytest.approx(0.008)
    assert new['bei_request_tokens_total{model="m"}'] == 7
    assert 'te_embed_count{model="m"}' not in new


def test_a_failure_is_counted_as_a_request_where_its_texts_are_known(model):
    new = gained(model.server, lambda: model.observe_failure(3, "overloaded", scored=False))
    assert new == {
        'te_request_failure{err="overloaded",model="m"}': 1,
        'te_request_count{method="batch",model="m"}': 1,
        'te_embed_count{model="m"}': 3,
    }
    assert gained(model.server, lambda: model.observe_failure(0, "validation", scored=False)).keys() == {
        'te_request_failure{err="validation",model="m"}'
    }


def test_how_well_a_batch_is_packed(model):
    new = gained(model.server, lambda: model.observe_packing(texts=3, tokens=60, longest=40, budget=100))
    assert new['bei_padded_tokens_total{model="m"}'] == 120
    assert new['bei_batch_fill_sum{model="m"}'] == pytest.approx(0.6)
    assert 'bei_batch_fill_bucket{le="0.6",model="m"}' in new
    assert 'bei_batch_fill_bucket{le="0.5",model="m"}' not in new


def test_models_of_one_server_are_told_apart_and_each_has_the_durations_of_its_own_task():
    metrics = Metrics()
    named = ['a "quoted" \\ name', "other"]
    embedder, tagger = map(metrics.of_model, named)

    def run() -> None:
        embedder.observe_answer(2, 7, scored=False, **TIMES)
        for _ in range(3):
            tagger.observe_answer(1, 5, scored=True, **TIMES)
        tagger.set_ready(True)

    gained(metrics, run)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}

    def counts(family: str, sample: str) -> dict[str, float]:
        return {
            one.labels["model"]: one.value
            for one in families[family].samples
            if one.name in (sample, f"{sample}_total")
        }

    assert counts("te_embed_count", "te_embed_count") == {named[0]: 2, "other": 0}
    assert counts("te_predict_count", "te_predict_count") == {named[0]: 0, "other": 3}
    assert counts("te_request_duration", "te_request_duration_count") == {named[0]: 1, "other": 3}
    assert counts("te_embed_duration", "te_embed_duration_count") == {named[0]: 1}
    assert counts("te_predict_queue_duration", "te_predict_queue_duration_count") == {"other": 3}
    assert counts("bei_ready", "bei_ready") == {named[0]: 0, "other": 1}


STATES = ("bei_ready", "bei_info", "bei_engine_streams", "bei_device_streams", "bei_device_down")


def states(metrics: Metrics) -> list[str]:
    text = metrics.exposition().decode()
    return [line.rpartition(" ")[0] for line in text.splitlines() if line.startswith(STATES)]


@pytest.fixture(params=[False, True], ids=["one process", "several"])
def metrics(request, tmp_path, monkeypatch) -> Metrics:
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    return Metrics(tmp_path if request.param else None)


def test_a_model_that_took_over_has_one_engine(metrics):
    model = metrics.of_model("m")
    model.observe_engine("native", "cpu", "bf16", 2)
    metrics.of_model("m").observe_engine("native", "cpu", "int8", 2)
    infos = [state for state in states(metrics) if state.startswith("bei_info")]
    assert infos == ['bei_info{device="cpu",engine="native",model="m",precision="int8"}']


def test_a_model_that_is_gone_has_counts_and_no_states(metrics):
    for name in ("kept", "gone"):
        model = metrics.of_model(name)
        model.of_device("any").observe_start(2)
        model.observe_engine("native", "cpu", "bf16", 2)
        model.set_ready(True)
        model.observe_answer(1, 7, scored=False, **TIMES)
    before = states(metrics)
    model.forget()
    assert states(metrics) == [state for state in before if 'model="kept"' in state]
    assert len(states(metrics)) == len(STATES)
    assert b'te_embed_count{model="gone"} 1.0' in metrics.exposition()
    model.set_ready(True)
    model.observe_engine("native", "cpu", "bf16", 2)
    model.of_device("any").observe_start(2)
    assert sorted(states(metrics)) == sorted(before)


def test_two_servers_of_one_process_count_for_themselves():
    mine, other = Metrics(), Metrics()
    mine.observe_reply("/embed", 200)
    assert gained(other, lambda: mine.observe_cancelled("drain")) == {}
    assert b'bei_requests_total{path="/embed",status="200"} 1.0' in mine.exposition()
    assert b"bei_requests_total{" not in other.exposition()


def test_what_a_process_takes_is_there(model):
    exposition = model.server.exposition()
    for name in (b"process_resident_memory_bytes", b"python_info", b"python_gc_collections_total"):
        assert name in exposition


def test_a_port_of_its_own():
    number = free_port()
    port.listen(Metrics(), "127.0.0.1", number)
    reply = httpx.get(f"http://127.0.0.1:{number}/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (200, CONTENT_TYPE)
    assert b"te_request_count{" in reply.content or b"# TYPE te_request_count counter" in reply.content


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError, match=r"cannot serve metrics on 127\.0\.0\.1:.*--prometheus-port"):
            port.listen(Metrics(), "127.0.0.1", taken.getsockname()[1])


PARENT = """
import subprocess, sys
from pathlib import Path
from bei.metrics import Metrics

Metrics().observe_cancelled("deadline")  # another's
metrics = Metrics(Path(sys.argv[1]))
model = metrics.of_model("m")
model.observe_batch(2, 30, 0.5)
model.observe_engine("null", "cpu", "fp32", 2)
model.observe_queue(4, 40)
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
workers = [subprocess.Popen([sys.executable, "-c", *sys.argv[2:0:-1]], **pipes) for _ in range(3)]
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
from pathlib import Path
from bei.metrics import Metrics

metrics = Metrics(Path(sys.argv[1]))
model = metrics.of_model("m")
model.observe_answer(1, 7, scored=False, total=0.02, tokenization=0.001, queue=0.01, inference=0.008)
metrics.observe_reply("/embed", 200)
model.requests_in_flight.inc()
model.set_ready(True)
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
        assert seen['te_request_count{method="single",model="m"}'] == "3.0"
        assert seen['te_embed_duration_count{model="m"}'] == "3.0"
        assert seen['bei_requests_total{path="/embed",status="200"}'] == "3.0"
        assert seen['bei_engine_seconds_total{model="m"}'] == "0.5"
        assert seen['te_queue_size{model="m"}'] == "4.0"
        assert seen['bei_ready{model="m"}'] == "1.0"
        assert seen['bei_info{device="cpu",engine="null",model="m",precision="fp32"}'] == "1.0"
        assert sum(name.startswith("bei_build_info") for name in seen) == 1
        assert not any(name.startswith("bei_cancelled_total") for name in seen)
    assert [seen['bei_requests_in_flight{model="m"}'] for seen in (while_three, after)] == ["3.0", "2.0"]


def test_silent_connections_to_the_port_have_a_bound(monkeypatch):
    monkeypatch.setattr(port, "_CONNECTION_SECONDS", 1.0)
    port.listen(Metrics(), "127.0.0.1", number := free_port())
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", number), 10)) for _ in range(50)]
        ends = [sock.recv(1) for sock in silent[port.CONNECTIONS :]]  # closed at once
        assert threading.active_count() - before <= 2 * port.CONNECTIONS
        assert {*ends, *(sock.recv(1) for sock in silent)} == {b""}

    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{number}/metrics").status_code == 200
        return False

    wait_until(answers)
