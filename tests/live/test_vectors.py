"""Numbers over HTTP: golden vectors, STS-B, sentence-transformers, and independence of neighbors."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from bei.checkpoint.sources import fetch
from bei.settings import Settings
from tests.support.live_servers import DATA, embed, mixed_texts, stsb
from tests.support.parity import cosines
from tests.support.shared import once

ROOT = Path(__file__).parents[2]
MIXED = mixed_texts(100)


@pytest.fixture(scope="session")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(fetch(Settings.from_file(ROOT / "config.yaml")).folder), device="cpu")


def test_golden_vectors(url):
    golden = json.loads((DATA / "minilm_golden.json").read_text())
    pooled, short = golden["mean_pooled_unnormalized"], golden["dimensions_128_normalized"]
    rows = httpx.post(f"{url}/embed", json={"inputs": pooled["texts"], "normalize": False}).json()
    assert cosines(np.array(rows), np.array(pooled["vectors"])).min() > 0.9999
    assert cosines(embed(url, short["texts"], dimensions=128), np.array(short["vectors"])).min() > 0.9999


def test_stsb_spearman(url):
    first, second, scores = stsb()
    similarity = cosines(embed(url, first), embed(url, second))
    assert spearmanr(similarity, scores).statistic == pytest.approx(0.8203, abs=0.0005)


@pytest.fixture(scope="session")
def expected(of_all_workers, reference) -> np.ndarray:
    def write(folder: Path) -> None:
        np.save(folder / "rows.npy", reference.encode(MIXED, batch_size=32))

    return np.load(once(of_all_workers / "sentence-transformers", write) / "rows.npy")


def test_equals_sentence_transformers(url, precision, expected):
    assert cosines(embed(url, MIXED), expected).min() >= (0.99999 if precision == "fp32" else 0.9999)


def test_unnormalized_rows_equal_sentence_transformers(url, precision, reference):
    texts = mixed_texts(20)
    rows = np.array(httpx.post(f"{url}/embed", json={"inputs": texts, "normalize": False}).json(), np.float32)
    tokens = reference[0](reference.preprocess(texts))
    expected = reference[1](tokens)["sentence_embedding"].detach().numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-5 if precision == "fp32" else 0.02)


def test_a_text_does_not_depend_on_its_neighbors(url, precision):
    text = "A group of men play soccer on the beach."
    long_neighbor, crowd = " ".join(["word"] * 512), mixed_texts(150)
    alone = embed(url, [text])
    beside = httpx.post(f"{url}/embed", json={"inputs": [long_neighbor, text]}).json()[1]
    among = httpx.post(f"{url}/embed", json={"inputs": [*crowd[:90], text, *crowd[90:]]}, timeout=120).json()[90]
    assert cosines(np.array([beside, among]), alone).min() >= (0.99999 if precision == "fp32" else 0.9999)
