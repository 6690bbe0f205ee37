"""Requests of programs that do not run in the tests, as their sources make them, and what they read of the answer."""

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.support.calls import call, near, post
from tests.support.task_models import QUERY, TEXTS

JSON = {"content_type": "application/json", "authorization": "Bearer k"}


@dataclass
class Recorded:
    """`read` takes the vectors, or the ranks as [index, score], from the answer, as the program does."""

    program: str
    path: str
    body: dict[str, Any]
    read: Callable[[Any], list]
    kind: str = "embedding"
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def of_openai(answer) -> list:
    assert answer["usage"]["total_tokens"] > 0
    return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


def of_base64(answer) -> list:
    return [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in of_openai(answer)]


def of_results(answer) -> list:
    return [[item["index"], item["relevance_score"]] for item in answer["results"]]


EMBEDDING = [
    Recorded("Dify's TEI plugin", "/v1/embeddings", {"input": TEXTS}, of_openai),
    Recorded("RAGFlow, HuggingFace", "/embed", {"inputs": TEXTS}, lambda rows: rows),
    Recorded(
        "RAGFlow, OpenAI",
        "/v1/embeddings",
        {"input": TEXTS, "model": "m", "encoding_format": "float", "drop_params": True},
        of_openai,
    ),
    Recorded(
        "RAGFlow, NVIDIA",
        "/v1/embeddings",
        {"input": TEXTS, "input_type": "query", "model": "m", "encoding_format": "float", "truncate": "END"},
        of_openai,
    ),
    Recorded(
        "RAGFlow, Ollama",
        "/api/embed",
        {"input": TEXTS, "model": "m", "options": {"use_mmap": True}, "keep_alive": -1},
        lambda answer: answer["embeddings"],
    ),
    Recorded(
        "RAGFlow, Jina",
        "/v1/embeddings",
        {
            "model": "m",
            "input": [{"text": text} for text in TEXTS],
            "task": "retrieval.passage",
            "truncate": True,
        },
        of_openai,
    ),
    Recorded(
        "AnythingLLM, Ollama",
        "/api/embed",
        {"model": "m", "input": TEXTS, "options": {"num_ctx": 8192}},
        lambda answer: answer["embeddings"],
    ),
    Recorded("Open WebUI, Ollama", "/api/embed", {"input": TEXTS, "model": "m"}, lambda answer: answer["embeddings"]),
    Recorded("Elasticsearch, openai", "/v1/embeddings", {"input": TEXTS, "model": "m", "user": "u"}, of_openai),
    Recorded("Elasticsearch, hugging_face", "/embed", {"inputs": TEXTS}, lambda rows: rows),
    Recorded(
        "Elasticsearch, jinaai",
        "/v1/embeddings",
        {
            "input": [{"text": text} for text in TEXTS],
            "model": "m",
            "embedding_type": "float",
            "task": "retrieval.passage",
            "late_chunking": False,
        },
        of_openai,
    ),
    Recorded(
        "Elasticsearch, cohere",
        "/v2/embed",
        {
            "texts": TEXTS,
            "model": "m",
            "input_type": "search_document",
            "embedding_types": ["float"],
            "truncate": "END",
        },
        lambda answer: answer["embeddings"]["float"],
    ),
    Recorded(
        "Spring AI, OpenAI",
        "/v1/embeddings",
        {"input": TEXTS, "model": "m", "encoding_format": "float"},
        of_openai,
    ),
    Recorded(
        "Spring AI, Ollama",
        "/api/embed",
        {"model": "m", "input": TEXTS, "options": {"num_ctx": 2048, "num_gpu": -1}, "truncate": True},
        lambda answer: answer["embeddings"],
    ),
    Recorded("langchain4j, OpenAI", "/v1/embeddings", {"model": "m", "input": TEXTS}, of_openai),
    Recorded(
        "Semantic Kernel, Azure",
        "/openai/deployments/my-embeddings/embeddings",
        {"input": TEXTS, "model": "my-embeddings", "encoding_format": "base64"},
        of_base64,
        headers={"content_type": "application/json", "api_key": "k"},
    ),
    Recorded("aiperf, embeddings and nim-embeddings", "/v1/embeddings", {"model": "m", "input": TEXTS}, of_openai),
    Recorded("guidellm, several columns of text", "/v1/embeddings", {"model": "m", "input": TEXTS}, of_openai),
    Recorded(
        "vllm bench serve, openai-embeddings",
        "/v1/embeddings",
        {"model": "m", "input": TEXTS, "truncate_prompt_tokens": -1},
        of_openai,
    ),
    Recorded(
        "vllm bench serve, vllm-pooling",
        "/pooling",
        {"model": "m", "input": TEXTS, "truncate_prompt_tokens": -1},
        lambda answer: [item["data"] for item in answer["data"]],
    ),
]
RERANK = {"model": "m", "query": QUERY, "documents": TEXTS}
RANKING = [
    Recorded(
        "Dify's TEI plugin",
        "/rerank",
        {"query": QUERY, "texts": TEXTS, "return_text": True},
        lambda ranks: [[rank["index"], rank["score"]] for rank in ranks if rank["text"] == TEXTS[rank["index"]]],
        "reranker",
    ),
    Recorded("RAGFlow, Jina", "/v1/rerank", {**RERANK, "top_n": len(TEXTS)}, of_results, "reranker"),
    Recorded("Open WebUI, external", "/v1/rerank", {**RERANK, "top_n": len(TEXTS)}, of_results, "reranker"),
    Recorded(
        "Elasticsearch, jinaai",
        "/v1/rerank",
        {**RERANK, "top_n": len(TEXTS), "return_documents": True},
        lambda answer: [of for of in of_results(answer) if answer["results"][0]["document"]["text"] in TEXTS],
        "reranker",
    ),
    Recorded(
        "Elasticsearch, cohere",
        "/v2/rerank",
        {**RERANK, "top_n": len(TEXTS)},
        of_results,
        "reranker",
    ),
    Recorded(
        "aiperf, nim-rankings",
        "/v1/ranking",
        {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]},
        lambda answer: [[rank["index"], 1 / (1 + math.exp(-rank["logit"]))] for rank in answer["rankings"]],
        "reranker",
    ),
    Recorded("aiperf, cohere-rankings", "/v2/rerank", RERANK, of_results, "reranker"),
    Recorded(
        "aiperf, hf-tei-rankings",
        "/rerank",
        {"query": QUERY, "texts": TEXTS},
        lambda ranks: [[rank["index"], rank["score"]] for rank in ranks],
        "reranker",
    ),
    Recorded(
        "vllm bench serve, vllm-rerank", "/v1/rerank", {**RERANK, "truncate_prompt_tokens": -1}, of_results, "reranker"
    ),
]


def answer_to(services, recorded: Recorded):
    reply = call(services[recorded.kind], recorded.path, recorded.body, **recorded.headers)
    assert reply.status == 200, reply.body
    return recorded.read(json.loads(reply.body))


@pytest.mark.parametrize("recorded", EMBEDDING, ids=lambda recorded: recorded.program)
def test_vectors(prompted, recorded):
    kinds = {"input_type": {"query": "query"}, "task": {"retrieval.passage": "passage"}}
    names = [kinds[field].get(recorded.body[field]) for field in kinds if field in recorded.body]
    prompt = names[0] or "passage" if names else None
    expected = post(prompted["embedding"], "/embed", {"inputs": TEXTS, "prompt_name": prompt})
    assert near(answer_to(prompted, recorded), expected)


@pytest.mark.parametrize("recorded", RANKING, ids=lambda recorded: recorded.program)
def test_ranks(prompted, recorded):
    ranks = post(prompted["reranker"], "/rerank", {"query": QUERY, "texts": TEXTS})
    expected = [[rank["index"], rank["score"]] for rank in ranks]
    assert near(sorted(answer_to(prompted, recorded)), expected)


def test_dify_reads_the_kind_of_a_model_and_counts_tokens(prompted):
    for kind in ("embedding", "reranker"):
        info = json.loads(call(prompted[kind], "/info", method="GET").body)
        assert next(iter(info["model_type"])) == kind
        assert info["max_input_length"] > 0
        assert info["max_client_batch_size"] >= 1
        tokens = post(prompted[kind], "/tokenize", {"inputs": TEXTS})
        assert [len(of_text) for of_text in tokens] == [5, 8, 4, 4]


def test_anything_llm_asks_first_whether_anyone_is_there(prompted):
    assert call(prompted["embedding"], "/", method="GET").status == 200


def test_ragflow_asks_ollama_s_older_route_for_queries(prompted):
    body = {"prompt": QUERY, "model": "m", "options": {"use_mmap": True}, "keep_alive": -1}
    found = post(prompted["embedding"], "/api/embeddings", body)["embedding"]
    assert near([found], post(prompted["embedding"], "/embed", {"inputs": QUERY, "normalize": False}))
