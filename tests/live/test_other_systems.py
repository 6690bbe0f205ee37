"""Servers where nothing is that only Linux has, as on macOS, which no machine of ours runs."""

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest

from bei.checkpoint.load import read
from tests.support.configs import tiny_config
from tests.support.servers import ROOT, serving
from tests.support.tiny_models import random_model, save, write_json
from tests.support.waiting import wait_until

TEXTS = {"input": ["the cat sat on the mat", "a big old tree"]}


def answer(*flags: str, log) -> np.ndarray:
    with serving(*flags, log=log) as url:
        reply = httpx.post(f"{url}/v1/embeddings", json=TEXTS)
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]])


def states(url: str) -> list[str]:
    return [of["state"] for of in httpx.get(f"{url}/v1/models").json()["data"]]


def hide_linux(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From interpreters that begin after this."""
    shutil.copy(ROOT / "tests/support/without_linux.py", folder / "sitecustomize.py")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


@pytest.mark.parametrize("engine", ["native", "torch", "null"])
def test_it_serves_without_linux(tmp_path, monkeypatch, native_cache, engine):
    flags = ("--engine", engine, "--cache-dir", str(native_cache))
    expected = answer(*flags, log=tmp_path / "log")
    hide_linux(tmp_path, monkeypatch)
    np.testing.assert_array_equal(answer(*flags, log=tmp_path / "log"), expected)


def test_a_budget_counts_the_files_of_weights_where_no_memory_is_told(tmp_path, monkeypatch, native_cache):
    folders = [save(tmp_path / name, random_model("bert")) for name in ("first", "second", "third")]
    for folder in folders:
        write_json(folder.with_suffix(".yaml"), tiny_config(folder))
    hide_linux(tmp_path, monkeypatch)
    budget = int(2.5 * read(folders[0], "first").tensors.stored_bytes)
    flags = ["--engine", "native", "--cache-dir", str(native_cache), "--lazy", "--memory-budget", str(budget)]
    for folder in folders[1:]:
        flags += "--config", str(folder.with_suffix(".yaml"))
    with serving(*flags, log=tmp_path / "log", config=folders[0].with_suffix(".yaml")) as url:
        for folder in folders:
            reply = httpx.post(f"{url}/v1/embeddings", json={**TEXTS, "model": str(folder)}, timeout=300)
            assert reply.status_code == 200, reply.text
        wait_until(lambda: states(url) == ["unloaded", "ready", "ready"])
