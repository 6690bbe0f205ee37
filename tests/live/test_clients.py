"""Real clients over a real socket."""

import asyncio

import httpx
import numpy as np
import pytest
from baseten_performance_client import PerformanceClient
from openai import AsyncOpenAI, OpenAI

from tests.support.live_servers import embed, mixed_texts, stsb
from tests.support.parity import cosines


def counter(url: str, name: str) -> float:
    """The sum of a Prometheus counter over its labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}_total", f"{name}{{", f"{name} "))
    )


@pytest.fixture(scope="module")
def two_thousand() -> list[str]:
    """Distinct sentences."""
    first, second, _ = stsb()
    return list(dict.fromkeys([*first, *second]))[:2000]


def test_sixty_four_openai_clients_at_once(url, two_thousand):
    texts = [*two_thousand[:360], *mixed_texts(40)]

    async def client(share: list[int]) -> dict[int, list[float]]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=9, timeout=300) as openai:
            rows = {}
            for start in range(0, len(share), 4):
                part = share[start : start + 4]
                answer = await openai.embeddings.create(model="m", input=[texts[i] for i in part])
                rows |= {i: item.embedding for i, item in zip(part, answer.data, strict=True)}
            return rows

    async def everyone() -> list[dict[int, list[float]]]:
        return await asyncio.gather(*(client(list(range(n, len(texts), 64))) for n in range(64)))

    rows = {i: row for part in asyncio.run(everyone()) for i, row in part.items()}
    assert sorted(rows) == list(range(len(texts)))
    together = np.array([rows[i] for i in range(len(texts))], np.float32)
    with httpx.Client(timeout=60) as http:
        alone = [http.post(f"{url}/embed", json={"inputs": text}).json()[0] for text in texts]
    assert cosines(np.array(alone), together).min() >= 0.9999


def test_openai_python(url):
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="m", input=["hello", "world"], dimensions=8, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert answer.usage.prompt_tokens == 6
    assert client.models.list().data[0].id == answer.model == "sentence-transformers/all-MiniLM-L6-v2"
    base64 = client.embeddings.create(model="m", input=["hello", "world"])
    assert cosines(np.array([base64.data[0].embedding]), embed(url, ["hello"])).min() > 0.999999


def test_performance_client_with_its_defaults_never_retries(url, two_thousand):
    texts = two_thousand
    requests, failures = counter(url, "te_request_count"), counter(url, "te_request_failure")
    answer = PerformanceClient(base_url=url, api_key="none").embed(input=texts, model="m")
    assert answer.numpy().shape == (2000, 384)
    assert cosines(answer.numpy(), embed(url, texts)).min() >= 0.9999
    seen = counter(url, "te_request_count") - requests - len(range(0, 2000, 256))
    assert len(answer.individual_request_times) == seen, "a retry would be one request more"
    assert counter(url, "te_request_failure") == failures
