"""The GPU benchmarks on a CPU with tiny models: everything but the GPU."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import gpu, gpu_check, gpu_http
from benchmarks.gpu_check import COSINE_BF16, RELATIVE, Check
from benchmarks.gpu_models import operations
from tests.support.small_models import MODELS


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def run(command, *arguments) -> int:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def test_correctness(work):
    places = ("--work", work, "--out", work / "out", "--models", MODELS)
    assert run(gpu_check.main, "--families", "bert,qwen3", "--longest", 128, "--texts", 32, *places) == 0
    checks = json.loads((work / "out" / "correctness.json").read_text())["checks"]
    done = {(check["what"], check["precision"]) for check in checks if check["value"] is not None}
    assert {
        ("bert", "fp32"),
        ("qwen3", "bf16"),
        ("one text of 128 tokens", "bf16"),
        ("texts of smollm2", "bf16"),
    } <= done
    assert all(check["refused"] for check in checks if check["engine"] == "tensorrt")


@pytest.mark.parametrize(
    ("precision", "value", "passes"),
    [("fp32", 1e-6, True), ("fp32", 1e-4, False), ("bf16", 0.9999, True), ("bf16", 0.99, False), ("fp8", None, True)],
)
def test_what_passes(work, monkeypatch, precision, value, passes):
    check = Check("bert", "torch", precision, value, RELATIVE if precision == "fp32" else COSINE_BF16)
    monkeypatch.setattr(gpu_check.Checker, "run", lambda *_: iter([check]))
    assert run(gpu_check.main, "--work", work, "--out", work / "out") == (0 if passes else 1)


def test_speed(work):
    run(gpu.main, "--model", "tiny-qwen3", "--repeats", 1, "--lone", 2, "--work", work, "--out", work / "out")
    result = json.loads((work / "out" / "speed-tiny-qwen3.json").read_text())
    assert set(result["sets"]) == {"16", "128", "512", "mix"}
    assert result["sets"]["128"]["tokens"] == 1024
    rows = result["sets"]["mix"]["rows"]
    assert set(rows) == {"sentence-transformers bf16, service", "torch bf16, engine", "torch bf16, service"}
    assert all(row["tokens_a_second"] > 0 and row["ratio"] > 0 for row in rows.values())
    assert "no NVIDIA GPU" in result["engines"]["tensorrt bf16"]["refused"]
    assert set(result["engines"]["torch bf16"]["latency_ms"]) == {f"{n} p{p}" for n in (16, 128, 512) for p in (50, 99)}


def test_http(work):
    few = ("--engines", "torch bf16", "--clients", "1,2", "--rounds", 1, "--requests", 16)
    run(gpu_http.main, "--model", "tiny-bert", *few, "--work", work, "--out", work / "out")
    servers = json.loads((work / "out" / "http-tiny-bert.json").read_text())["servers"]
    assert servers["torch bf16"]["seconds_to_first_answer"] > 0
    assert set(servers["torch bf16"]["clients"]) == {"1", "2"}


def test_operations_are_counted(tiny_checkpoint):
    spec = tiny_checkpoint.spec
    linear = 2 * len(spec.layers) * spec.hidden_size * (4 * spec.hidden_size + 2 * spec.intermediate_size)
    assert operations(spec, [3, 3, 5]) == linear * 11 + 4 * spec.hidden_size * len(spec.layers) * (9 + 9 + 25)
