"""Servers on real weights, and real texts for them."""

import httpx
import numpy as np

from bei.samples import stsb as samples
from tests.support.servers import ROOT

TASK_SERVERS = {
    "embedding": ("config.yaml", ()),
    "reranker": ("examples/small-reranker/config.yaml", ()),
    "by_score": ("examples/small-reranker/config.yaml", ("--rerank-order", "score")),
    "classifier": ("examples/small-classifier/config.yaml", ()),
    "pii": ("examples/small-pii/config.yaml", ()),
    "splade": ("examples/small-splade/config.yaml", ()),
}
DATA = ROOT / "tests" / "data"


def embed(url: str, texts: list[str], **fields) -> np.ndarray:
    """float32[N, D] through /v1/embeddings, 256 texts per request."""
    rows = []
    with httpx.Client(timeout=120) as client:
        for start in range(0, len(texts), 256):
            body = {"input": texts[start : start + 256], **fields}
            answer = client.post(f"{url}/v1/embeddings", json=body)
            assert answer.status_code == 200, answer.text
            rows += [item["embedding"] for item in answer.json()["data"]]
    return np.array(rows, np.float32)


def stsb() -> tuple[list[str], list[str], list[float]]:
    pairs = samples.pairs()
    return list(pairs.first), list(pairs.second), list(pairs.scores)


def mixed_texts(count: int) -> list[str]:
    """Texts of 1 to 500 words, deterministic."""
    rng = np.random.default_rng(3)
    words = " ".join(stsb()[0]).split()
    return [" ".join(rng.choice(words, size=n)) for n in np.linspace(1, 500, count).astype(int)]
