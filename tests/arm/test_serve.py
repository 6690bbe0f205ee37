"""`bei serve` on ARM64, with the weights of config.yaml."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.stats import spearmanr

from bei.checkpoint.sources import fetch
from bei.settings import Settings
from tests.support import arm
from tests.support.live_servers import DATA, embed, stsb
from tests.support.parity import cosines
from tests.support.servers import ROOT, serving

pytestmark = arm.needs_arm
PAIRS = 24
"""Pairs of texts at each level: an emulated BFMMLA takes half a microsecond."""


@pytest.fixture(scope="module", params=arm.CPUS)
def url(request, tmp_path_factory, native_cache):
    level = request.param
    if level != "neon_i8mm" and not request.config.getoption("--arm"):
        pytest.skip("`make test-arm` serves at each level")
    folder = fetch(Settings.from_file(ROOT / "config.yaml")).folder
    log = tmp_path_factory.mktemp(level) / "log"
    flags = ("--source", "LOCAL", "--repo", str(folder), "--cache-dir", str(native_cache))
    bei, environment = (arm.PYTHON, "-m", "bei.cli"), arm.environment(arm.CPUS[level])
    with serving(*flags, log=log, program=bei, environment=environment, timeout=900) as url:
        assert f"engine native: the fastest that runs here; bf16 on cpu x {_threads(log)}, {level}" in log.read_text()
        yield url


def _threads(log: Path) -> str:
    return log.read_text().partition("cpu x ")[2].partition(",")[0]


def test_golden_vectors(url):
    golden = json.loads((DATA / "minilm_golden.json").read_text())
    pooled, short = golden["mean_pooled_unnormalized"], golden["dimensions_128_normalized"]
    body = {"inputs": pooled["texts"], "normalize": False}
    rows = httpx.post(f"{url}/embed", json=body, timeout=600).json()
    assert cosines(np.array(rows), np.array(pooled["vectors"])).min() > 0.9999
    assert cosines(embed(url, short["texts"], dimensions=128), np.array(short["vectors"])).min() > 0.9999


def test_stsb(request, url, tmp_path):
    """The rows are those of this machine's own processor, and so is the quality."""
    if not request.config.getoption("--arm"):
        pytest.skip("`make test-arm` asks for STS-B")
    first, second, scores = (column[:PAIRS] for column in stsb())
    with serving("--precision", "fp32", log=tmp_path / "log") as ours:
        expected = embed(ours, first + second)
    rows = np.concatenate([embed(url, [text]) for text in first + second])
    assert cosines(rows, expected).min() >= 0.9995
    here, there = (spearmanr(cosines(x[:PAIRS], x[PAIRS:]), scores).statistic for x in (expected, rows))
    assert there == pytest.approx(here, abs=0.01)
