"""`bei doctor`: the real command on this machine, and its parts on machines that are folders."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bei import cli
from bei.doctor import caches, machine
from bei.doctor.findings import bytes_in_words
from bei.engines.native import library
from bei.engines.native.levels import level
from tests.support.tiny_models import random_model, save


def run(*arguments: object):
    return CliRunner().invoke(cli.main, ["doctor", *map(str, arguments)])


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(library, "BUILT", Path("/absent"))
    monkeypatch.setenv("CXX", "absent")


def test_the_engine_of_a_model_is_the_one_that_serves_it(tmp_path):
    model = save(tmp_path / "model", random_model("bert"))
    result = run(model, "--engine", "torch", "--precision", "fp32", "--cache-dir", tmp_path / "cache", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (told,) = found["model"]
    assert (told["state"], told["says"].startswith("embedding, runs on torch, fp32 on cpu")) == ("ok", True)
    assert {finding["subject"] for finding in found["machine"]} >= {"processor", "memory", "disk", "GPU", "hub"}
    assert {finding["subject"] for finding in found["engines"]} == {"native", "torch", "tensorrt"}
    assert found["freed_bytes"] is None


def test_a_model_that_cannot_be_served_is_a_fault(tmp_path):
    model = save(tmp_path / "model", random_model("bert"))
    (model / "model.safetensors").unlink()
    result = run(model, "--cache-dir", tmp_path / "cache")
    assert result.exit_code == 1
    assert "  fault " in result.stdout.partition("\nmodel\n")[2]
    assert "no *.safetensors" in result.stdout


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("BEI_CACHE_DIR", str(tmp_path))
    assert f" free for {tmp_path}" in run().stdout


def test_a_flag_about_a_model_needs_one():
    refused = run("--precision", "int8")
    assert (refused.exit_code, "--precision is about a model; name it" in refused.stderr) == (2, True)


def test_what_is_missing_has_the_command_that_mends_it(tmp_path, no_compiler):
    found = {finding.subject: finding for finding in machine.engines(tmp_path)}
    assert (found["native"].state, found["native"].remedy) == ("missing", "apt-get install g++")
    assert "CXX=absent" in found["native"].says


def test_no_engine_is_a_fault(tmp_path, no_compiler, monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None)
    result = run("--cache-dir", tmp_path)
    assert result.exit_code == 1
    assert "no engine runs here" in result.stdout
    assert f"{sys.executable} -m pip install" in result.stdout.partition("\nextras\n")[2]


def test_a_compiled_library_is_found(tmp_path, no_compiler):
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / library.name_of(level())).touch()
    found = {finding.subject: finding for finding in machine.engines(tmp_path)}
    assert (found["native"].state, found["native"].says.endswith("its library is compiled")) == ("ok", True)


def test_another_machine(tmp_path, monkeypatch):
    """Its files are those that the kernel and NVIDIA's driver write."""
    for name, content in {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Processor\n",
        "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
        "sys/fs/cgroup/memory.max": "2000000000\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "proc/driver/nvidia/version": "",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA L4\nIRQ: 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    found = {finding.subject: finding for finding in machine.machine(tmp_path / "cache", tmp_path)}
    assert found["processor"].says == f"A Processor, 1 of {os.cpu_count()} processors for this process"
    assert found["memory"].says == "16.4 GB, 8.2 GB free; the container may use 2.0 GB"
    assert (found["GPU"].state, found["GPU"].says) == ("ok", "NVIDIA L4")
    assert (found["disk"].state, found["disk"].remedy) == ("fault", "bei doctor --prune")
    engines = {finding.subject: finding for finding in machine.engines(tmp_path, tmp_path)}
    assert "GPU" not in engines["tensorrt"].says or engines["tensorrt"].remedy


def test_pruning_removes_what_no_start_will_use(tmp_path):
    def file(name: str, size: int, days: float) -> Path:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes(size))
        then = time.time() - 86_400 * days
        os.utime(place, (then, then))
        return place

    other = tmp_path / "elsewhere"
    file("elsewhere/model.safetensors", 1000, 99)
    kept = [file(f"native/{library.name_of(level())}", 10, 1), file("native/new.plan", 20, 29)]
    kept += [file("native/.new.unfinished", 5, 0), file("hub/other.bin", 7, 99)]
    gone = [file("native/bei-avx2-0123.so", 100, 0), file("native/old.plan", 200, 31)]
    gone += [file("native/.old.unfinished", 300, 0.1), file("checkpoints/old/model.safetensors", 400, 40).parent]
    (tmp_path / "adapted").mkdir()
    link = tmp_path / "adapted" / "link"
    link.symlink_to(other)
    told = run("--cache-dir", tmp_path).stdout
    assert "0.6 kB" not in told and "1.0 kB are unused: bei doctor --prune" in told
    assert all(place.exists() for place in gone)
    result = run("--cache-dir", tmp_path, "--prune", "--json")
    assert json.loads(result.stdout)["freed_bytes"] == 1000
    assert [place.exists() for place in (*kept, *gone, link, other)] == [True] * 4 + [False] * 4 + [True] * 2
    assert caches.prune(caches.read(tmp_path, unused_days=0)) > 0
    assert (other / "model.safetensors").exists(), "a link is removed, not what it leads to"
    assert (tmp_path / "hub/other.bin").exists()


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_100_000_000, "2.1 GB"), (3 * 10**15, "3000.0 TB")],
)
def test_bytes(count, words):
    assert bytes_in_words(count) == words
