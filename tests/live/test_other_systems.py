"""A server where nothing is that only Linux has, as on macOS, which no machine of ours runs."""

import shutil

import httpx
import numpy as np
import pytest

from tests.support.servers import ROOT, serving

TEXTS = {"input": ["the cat sat on the mat", "a big old tree"]}


def answer(*flags: str, log) -> np.ndarray:
    with serving(*flags, log=log) as url:
        reply = httpx.post(f"{url}/v1/embeddings", json=TEXTS)
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]])


@pytest.mark.parametrize("engine", ["native", "torch", "null"])
def test_it_serves_without_linux(tmp_path, monkeypatch, native_cache, engine):
    flags = ("--engine", engine, "--cache-dir", str(native_cache))
    expected = answer(*flags, log=tmp_path / "log")
    shutil.copy(ROOT / "tests/support/without_linux.py", tmp_path / "sitecustomize.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    np.testing.assert_array_equal(answer(*flags, log=tmp_path / "log"), expected)
