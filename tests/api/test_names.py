"""Every error about an input names the field that was sent, and the place of the input in it."""

import re

import pytest

from tests.support.calls import call, refused
from tests.support.task_models import LONG

SHORT = ["a", "the cat"]
PLACES = [
    *(("embedding", path, "input", {}) for path in ("/v1/embeddings", "/embeddings", "/", "/invocations")),
    *(("embedding", path, "inputs", {}) for path in ("/embed", "/embed_all", "/")),
    *(("embedding", path, "texts", {}) for path in ("/v1/embed", "/v2/embed")),
    ("sparse", "/embed_sparse", "inputs", {}),
    ("multi_vector", "/embed_all", "inputs", {}),
    *(("multi_vector", path, "documents", {"query": "a"}) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ("multi_vector", "/rerank", "texts", {"query": "a"}),
    ("multi_vector", "/score", "text_2", {"text_1": "b"}),
    *(("embedding", path, "items", {"queries": "b"}) for path in ("/score", "/v1/score")),
    ("embedding", "/score", "data_1", {"data_2": ["the", "the", "the"]}),
    ("classifier", "/classify", "input", {}),
    ("entities", "/predict_tokens", "inputs", {}),
]
PAIRS = [
    *(("/rerank", "texts", {"query": ""}), ("/", "texts", {"query": ""})),
    *((path, "documents", {"query": ""}) for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/")),
    *((path, "documents", {"queries": ""}) for path in ("/score", "/v1/score")),
    ("/score", "text_2", {"text_1": ""}),
]


@pytest.mark.parametrize(("kind", "path", "field", "more"), PLACES)
def test_texts_are_named_as_they_were_sent(prompted, kind, path, field, more):
    service = prompted[kind]
    empty = refused(service, path, {**more, field: [*SHORT, ""]})
    assert empty == (400, f"`{field}` cannot be empty (input 2)")
    nothing = refused(service, path, {**more, field: []})
    # one of a pair's fields that holds nothing does not go with the other one
    assert nothing == (400, f"`{field}` cannot be empty") or f"`{field}` has 0 texts" in nothing[1]
    strict = {"truncate": False, **more, field: [*SHORT, LONG]}
    status, message = refused(service, path, strict)
    assert status == 422
    assert re.fullmatch(rf"`{field}` must have at most \d+ tokens. Given: \d+ \(input 2\)", message)


@pytest.mark.parametrize(("path", "field", "more"), PAIRS)
def test_a_pair_is_named_by_its_second_text(prompted, path, field, more):
    service = prompted["reranker"]
    assert refused(service, path, {**more, field: ["a", ""]}) == (400, f"`{field}` cannot be empty (input 1)")
    status, message = refused(service, path, {"truncate": False, **more, field: ["a", "b", LONG]})
    assert status == 422
    assert re.fullmatch(rf"`{field}` must have at most 64 tokens. Given: \d+ \(input 2\)", message)


@pytest.mark.parametrize(
    ("kind", "path", "body", "status", "message"),
    [
        ("multi_vector", "/rerank", {"query": "", "texts": ["a"]}, 400, "`query` cannot be empty"),
        ("multi_vector", "/score", {"queries": "", "items": ["a"]}, 400, "`queries` cannot be empty"),
        (
            "embedding",
            "/similarity",
            {"inputs": {"source_sentence": "", "sentences": ["a"]}},
            400,
            "`inputs.source_sentence` cannot be empty",
        ),
        (
            "embedding",
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}},
            400,
            "`inputs.sentences` cannot be empty (input 1)",
        ),
        (
            "classifier",
            "/predict",
            {"inputs": [["a"], ["", ""]]},
            400,
            "`inputs` cannot be empty (input 1)",
        ),
        ("embedding", "/decode", {"ids": [[5], [99999]]}, 422, "`ids`: token id 99999 is outside the vocabulary"),
        ("embedding", "/decode", {"ids": []}, 400, "`ids` cannot be empty"),
        ("embedding", "/v1/embeddings", {"input": [[5], [-1]]}, 422, "`input`: token id -1 is outside the vocabulary"),
        ("reranker", "/score", {"queries": ["a", "b"], "items": ["a"]}, 422, "`queries` has 2 texts and `items` 1"),
        ("reranker", "/predict", {"inputs": [["a", "b"]], "input_type": "query"}, 422, "`input_type` cannot be set wi"),
        ("embedding", "/v1/embeddings", {"input": "a", "output_dimension": 99}, 422, "`output_dimension` must be betw"),
        ("embedding", "/v1/embeddings", {"input": "a", "dimensions": 99}, 422, "`dimensions` must be between"),
    ],
)
def test_one_field(prompted, kind, path, body, status, message):
    found = refused(prompted[kind], path, body)
    assert (found[0], found[1][: len(message)]) == (status, message)


def test_as_many_tokens_as_the_message_says_are_taken(prompted):
    body = {"inputs": "the " * 62, "truncate": False}
    assert call(prompted["embedding"], "/embed", body).status == 200
    assert (
        "at most 64 tokens. Given: 65" in refused(prompted["embedding"], "/embed", {**body, "inputs": "the " * 63})[1]
    )
