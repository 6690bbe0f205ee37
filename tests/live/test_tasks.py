"""Rerank, classes, entities and sparse vectors on real weights over a real socket, large and many at once."""

import asyncio
import json
import random
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SparseEncoder

from bei import api
from tests.support.entity_texts import texts as texts_of_every_kind
from tests.support.live_servers import stsb
from tests.support.small_models import small_model


def post(url: str, path: str, **body: Any) -> Any:
    return httpx.post(url + path, json=body, timeout=300).raise_for_status().json()


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    first, second, _ = stsb()
    return list(dict.fromkeys([*first, *second]))


def logits(name: str, kind: Any, first: list[str], second: list[str] | None = None) -> np.ndarray:
    """transformers' own logits, with padded batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_model(name))
    model = kind.from_pretrained(small_model(name)).eval()
    found = []
    with torch.no_grad():
        for at in range(0, len(first), 64):
            read = tokenizer(
                first[at : at + 64],
                second and second[at : at + 64],
                padding=True,
                truncation=True,
                max_length=512,
                return_tensors="pt",
            )
            found.append(model(**read).logits.numpy())
    return np.concatenate(found)


def test_what_the_small_models_have_learned():
    figures = {
        name: json.loads((small_model(name) / "figures.json").read_text()) for name in ("reranker", "classifier")
    }
    assert figures["reranker"]["first"] >= 0.7, "the right passage first among 20, of headlines it never saw"
    assert figures["classifier"]["right"] >= 0.85, "of articles it never saw, in 5 sections"


def test_hundreds_of_documents_in_one_request(task_urls, sentences):
    query, documents = "A man is playing a guitar.", sentences[:300]
    ranks = post(task_urls["reranker"], "/rerank", query=query, texts=documents, raw_scores=True)
    assert [rank["index"] for rank in ranks] == list(range(300))
    kind = transformers.AutoModelForSequenceClassification
    expected = logits("reranker", kind, [query] * 300, documents)[:, 0]
    np.testing.assert_allclose([rank["score"] for rank in ranks], expected, atol=1e-4)


def test_the_right_passage_comes_first(task_urls):
    answer = post(
        task_urls["reranker"],
        "/v2/rerank",
        query="Ad sales boost Time Warner profit",
        documents=[
            "The striker scored twice in the second half of the cup final.",
            "The film won three awards at the festival in Cannes.",
            "Quarterly profits at US media giant TimeWarner jumped 76% to $1.13bn for the three months to December.",
            "A new phone with two cameras was shown.",
        ],
    )
    assert answer["results"][0]["index"] == 2


def test_2048_texts_in_one_request(task_urls, sentences):
    texts = sentences[:2048]
    found = post(task_urls["classifier"], "/predict", inputs=[[text] for text in texts])
    scores = torch.softmax(
        torch.tensor(logits("classifier", transformers.AutoModelForSequenceClassification, texts)), -1
    )
    labels = json.loads((small_model("classifier") / "config.json").read_text())["id2label"]
    for rows, expected in zip(found, scores.numpy(), strict=True):
        by_label = {row["label"]: row["score"] for row in rows}
        np.testing.assert_allclose([by_label[labels[str(i)]] for i in range(5)], expected, atol=1e-4)
    refused = httpx.post(task_urls["classifier"] + "/predict", json={"inputs": [["a"]] * 2049})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")


def long_text() -> str:
    words = " ".join(text for text in texts_of_every_kind(60, seed=1))
    return (words * (1 + 40_000 // len(words)))[:40_000]


def test_a_text_of_40_000_characters(task_urls):
    text = long_text()
    for server, path, body in (
        ("embedding", "/embed", {"inputs": text}),
        ("reranker", "/rerank", {"query": text, "texts": [text]}),
        ("classifier", "/predict", {"inputs": text}),
        ("splade", "/embed_sparse", {"inputs": text}),
        ("pii", "/predict_tokens", {"inputs": text}),
    ):
        reply = httpx.post(task_urls[server] + path, json={**body, "truncate": False}, timeout=60)
        assert (reply.status_code, "must have at most" in reply.text) == (422, True)
        if server != "pii":
            assert httpx.post(task_urls[server] + path, json=body, timeout=60).status_code == 200
    name = "Maria Schmidt"
    (entities,) = post(
        task_urls["pii"], "/predict_tokens", inputs=f"{text} My name is {name}.", aggregation_strategy="simple"
    )
    tail = [entity["token"] for entity in entities if entity["start"] > len(text)]
    assert tail == name.split(), "what stands past the model's length is found"


def test_sixty_four_large_requests_at_once(task_urls, sentences):
    """Each answer equals the one that its request gets alone; refusals for load say so, and nothing else fails."""
    rng = random.Random(0)
    texts, text = sentences[:100], long_text()
    bodies = {
        ("reranker", "/rerank"): {"query": "a man", "texts": texts},
        ("classifier", "/predict"): {"inputs": [[text] for text in texts]},
        ("pii", "/predict_tokens"): {"inputs": [text[:5_000]], "aggregation_strategy": "simple"},
        ("embedding", "/embed"): {"inputs": texts, "dimensions": 8},
    }
    alone = {key: post(task_urls[key[0]], key[1], **body) for key, body in bodies.items()}

    async def everyone() -> list[tuple[tuple[str, str], httpx.Response]]:
        async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=64)) as client:

            async def one(key: tuple[str, str]) -> tuple[tuple[str, str], httpx.Response]:
                return key, await client.post(task_urls[key[0]] + key[1], json=bodies[key])

            keys = [key for key in bodies for _ in range(16)]
            return await asyncio.gather(*(one(key) for key in rng.sample(keys, len(keys))))

    answers = asyncio.run(everyone())
    assert len(answers) == 64
    answered = [(key, reply) for key, reply in answers if reply.status_code == 200]
    assert {key for key, _ in answered} == set(bodies)
    for key, reply in answered:
        assert near(reply.json(), alone[key], 1e-4)
    for _, reply in answers:
        assert reply.status_code == 200 or (reply.status_code == 429 and int(reply.headers["retry-after"]) > 0)


VARYING = ("id", "created", "total_duration")


def near(found: Any, expected: Any, tolerance: float) -> bool:
    """The same JSON, except for small differences of its numbers, and for parts that always differ."""
    match expected:
        case float():
            return abs(found - expected) < tolerance
        case dict():
            same = found.keys() == expected.keys()
            return same and all(
                near(found[k], of, tolerance)
                for k, of in expected.items()
                if k not in ("id", "created", "total_duration")
            )
        case [{"label": _, "score": _}, *_]:
            by_label = ({row["label"]: row["score"] for row in rows} for rows in (found, expected))
            return near(*by_label, tolerance)
        case list():
            return len(found) == len(expected) and all(
                near(a, b, tolerance) for a, b in zip(found, expected, strict=True)
            )
        case _:
            return found == expected


EXAMPLES = [route for route in api.ROUTES if route.answer is not None]


@pytest.mark.parametrize("route", EXAMPLES, ids=lambda route: route.path)
def test_the_examples_of_the_openapi_document_are_true_answers(task_urls, route):
    """Answers of models that were trained on this machine may differ by more than last digits; the first result is the
    same."""
    replies = {name: httpx.post(url + route.path, json=route.example) for name, url in task_urls.items()}
    answers = {name: reply.json() for name, reply in replies.items() if reply.status_code == 200}
    assert any(
        near(answer, route.answer, 0.3 if name in ("reranker", "classifier") else 1e-3)
        for name, answer in answers.items()
    ), answers


@pytest.fixture(scope="module")
def pipeline() -> transformers.Pipeline:
    """transformers' own, whose model reads each text once, however its entities are put together."""
    made = transformers.pipeline("token-classification", model=str(small_model("pii")), device="cpu")
    compute, known = made._forward, {}

    def forward(inputs):
        key = inputs["sentence"]
        if key not in known:
            known[key] = compute(inputs)
        return known[key]

    made._forward = forward
    return made


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_personal_data_as_the_pipeline_finds_it(task_urls, sentences, pipeline, strategy):
    people = ["Maria Schmidt", "John Baker", "Zoë Müller", "O'Neill"]
    texts = [f"{text} I am {people[i % 4]}, call +49 30 {100000 + i}." for i, text in enumerate(sentences[:80])]
    texts += [text for text in texts_of_every_kind(40) if len(text) < 1000]
    ours = post(task_urls["pii"], "/predict_tokens", inputs=texts, aggregation_strategy=strategy)
    found = 0
    theirs = pipeline(texts, batch_size=1, aggregation_strategy=strategy)
    for text, entities, expected in zip(texts, ours, theirs, strict=True):
        assert [(e["start"], e["end"], *e["results"]) for e in entities] == [
            (e["start"], e["end"], e["entity_group"]) for e in expected
        ]
        scores = [score for e in entities for score in e["results"].values()]
        np.testing.assert_allclose(scores, [e["score"] for e in expected], atol=1e-4)
        assert all(e["token"] == text[e["start"] : e["end"]] for e in entities)
        found += len(entities)
    assert found > 120


def test_sparse_vectors_as_sentence_transformers(task_urls, sentences):
    texts = sentences[:200]
    expected = SparseEncoder(str(small_model("splade")), device="cpu").encode(texts, convert_to_sparse_tensor=False)
    found = post(task_urls["splade"], "/embed_sparse", inputs=texts)
    for terms, row in zip(found, expected.numpy(), strict=True):
        assert [term["index"] for term in terms] == np.flatnonzero(row).tolist()
        np.testing.assert_allclose([term["value"] for term in terms], row[row != 0], atol=1e-4)
