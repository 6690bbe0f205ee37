"""The routes of further families, in the shapes that their clients read: the numbers are those of TEI's routes."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from bei import __version__
from bei.api import ollama
from bei.serving.registry import Registry
from tests.support.calls import call, near, post, refused
from tests.support.task_models import LONG, QUERY, TEXTS, start


def get(service, path: str):
    reply = call(service, path, method="GET")
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def embed(service, texts, **more) -> list:
    return post(service, "/embed", {"inputs": texts, **more})


# -- Ollama ------------------------------------------------------------------------------------------------------------


def test_ollama_s_embed(prompted):
    service = prompted["embedding"]
    for input in (TEXTS, TEXTS[0]):
        answer = post(service, "/api/embed", {"model": "any:latest", "input": input, "keep_alive": "5m", "options": {}})
        assert near(answer["embeddings"], embed(service, input))
        assert answer["model"] == "tiny"
    assert answer["prompt_eval_count"] == 5
    assert all(type(answer[name]) is int for name in ("total_duration", "load_duration"))
    assert answer["total_duration"] > 1000  # nanoseconds


def test_ollama_s_older_embeddings_are_as_they_are(prompted):
    service, body = prompted["embedding"], {"model": "any", "prompt": TEXTS[0]}
    assert near([post(service, "/api/embeddings", body)["embedding"]], embed(service, TEXTS[0], normalize=False))
    cut = post(service, "/api/embeddings", {**body, "dimensions": 8})["embedding"]
    assert near([cut], embed(service, TEXTS[0], normalize=False, dimensions=8))
    assert near([post(service, "/api/embeddings", {**body, "normalize": True})["embedding"]], embed(service, TEXTS[0]))


def test_num_ctx_is_the_room_for_a_text(prompted):
    service = prompted["embedding"]
    body = {"input": LONG, "options": {"num_ctx": 5, "temperature": 0.1, "num_thread": 2}}
    cut = embed(service, LONG, truncate_prompt_tokens=5)
    assert near(post(service, "/api/embed", body)["embeddings"], cut)
    assert near(post(service, "/api/embed", {**body, "truncate_prompt_tokens": 60})["embeddings"], cut)
    for free in ({"num_ctx": 8192}, {"num_ctx": None}, {"num_ctx": 0}, None):
        found = post(service, "/api/embed", {"input": LONG, "options": free})["embeddings"]
        assert near(found, embed(service, LONG))
    said = refused(service, "/api/embed", {**body, "truncate": False})
    assert said[1].startswith("`input` must have at most 5 tokens")
    said = refused(service, "/api/embed", {"input": "a", "options": {"num_ctx": 1}})
    assert said == (422, "`options.num_ctx` 1 leaves no room for a text beside 2 tokens")


def test_ollama_s_lists(prompted):
    for kind, capabilities in (("embedding", ["embedding"]), ("reranker", [])):
        service = prompted[kind]
        (listed,) = get(service, "/api/tags")["models"]
        assert (listed["name"], listed["model"], listed["capabilities"]) == ("tiny", "tiny", capabilities)
        (ours,) = get(service, "/v1/models")["data"]
        assert (listed["state"], listed["dimensions"]) == (ours["state"], ours["dimensions"])
        assert listed["context_length"] == ours["max_model_len"]
        (running,) = get(service, "/api/ps")["models"]
        assert (running["name"], running["context_length"]) == ("tiny", service.model.checkpoint.max_tokens)
        assert (listed["size"], running["size_vram"]) == (service.stored_bytes, 0)
        assert running["size"] > 0
        for named in ({"model": "tiny"}, {"name": "tiny:latest"}):
            shown = post(service, "/api/show", named)
            assert shown["capabilities"] == capabilities
    info = post(prompted["embedding"], "/api/show", {"model": "tiny", "verbose": True})["model_info"]
    of = info["general.architecture"]
    assert (info[f"{of}.context_length"], info[f"{of}.embedding_length"]) == (64, 48)
    assert get(prompted["embedding"], "/api/version") == {"version": __version__}


def test_ollama_s_lists_have_every_field_and_no_other(prompted):
    lists = [route for route in ollama.DIALECT.routes if route.method == "GET"]
    assert len(lists) == 3
    for route in lists:
        answer = get(prompted["embedding"], route.path)
        assert TypeAdapter(route.response).validate_python(answer) == answer
    shown = post(prompted["embedding"], "/api/show", {"model": "tiny"})
    assert TypeAdapter(ollama.Shown).validate_python(shown) == shown


def test_ollama_s_errors_are_texts(prompted):
    service = prompted["embedding"]
    for path, body in (("/api/embed", {"input": 3}), ("/api/embed", b"{"), ("/api/embeddings", {"prompt": ""})):
        answer = json.loads(call(service, path, body).body)
        assert list(answer) == ["error"]
        assert isinstance(answer["error"], str)
    assert refused(service, "/api/embeddings", {"prompt": ""}) == (400, "`prompt` cannot be empty")
    assert call(prompted["reranker"], "/api/embed", {"input": "a"}).status == 424


# -- NVIDIA, vLLM, llama.cpp, Voyage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reranker", "multi_vector"])
def test_nvidia_s_ranking_is_of_logits_best_first(prompted, kind):
    service = prompted[kind]
    body = {"model": "any", "query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS], "truncate": "END"}
    found = post(service, "/v1/ranking", body)
    ranks = post(service, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    best = sorted(ranks, key=lambda rank: -rank["score"])
    assert near(found["rankings"], [{"index": rank["index"], "logit": rank["score"]} for rank in best])
    assert found["usage"]["total_tokens"] > 0
    said = refused(service, "/v1/ranking", {**body, "passages": []})
    assert said == (400, "`passages` cannot be empty")
    assert refused(service, "/v1/ranking", {**body, "passages": [{"image": "x"}]})[1] == "`passages.0.text` is required"


def pooled(service, **more) -> list:
    answer = post(service, "/pooling", {"input": TEXTS, **more})
    assert {item["object"] for item in answer["data"]} == {"pooling"}
    return [item["data"] for item in answer["data"]]


def test_vllm_s_pooling_is_the_model_s_own(prompted):
    assert near(pooled(prompted["embedding"]), embed(prompted["embedding"], TEXTS))
    rows = post(prompted["classifier"], "/predict", {"inputs": [[text] for text in TEXTS]})
    scores = [{row["label"]: row["score"] for row in of_text} for of_text in rows]
    assert near(pooled(prompted["classifier"]), [[of["bad"], of["fair"], of["good"]] for of in scores])
    assert near(pooled(prompted["multi_vector"]), post(prompted["multi_vector"], "/embed_all", {"inputs": TEXTS}))
    tokens = post(prompted["entities"], "/predict_tokens", {"inputs": TEXTS, "raw_scores": True})
    logits = [[list(token["results"].values()) for token in of_text] for of_text in tokens]
    assert near(pooled(prompted["entities"], use_activation=False), logits)
    shares = [np.exp(rows) / np.exp(rows).sum(-1, keepdims=True) for rows in map(np.array, logits)]
    assert near(pooled(prompted["entities"]), [rows.tolist() for rows in shares])


def test_vllm_s_pooling_by_task(prompted):
    service = prompted["embedding"]
    states = [np.array(rows) for rows in post(service, "/embed_all", {"inputs": TEXTS})]
    raw = pooled(service, task="token_embed", use_activation=False)
    assert near(raw, [rows.tolist() for rows in states])
    units = pooled(service, task="token_embed", dimensions=8)
    cut = [rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True) for rows in states]
    assert near(units, [rows.tolist() for rows in cut])
    signs = pooled(service, task="token_embed", output_dtype="ubinary")
    assert signs == [np.packbits(rows > 0, axis=1).tolist() for rows in states]
    for task, kind in (("classify", "embedding"), ("token_classify", "classifier"), ("embed", "entities")):
        assert call(prompted[kind], "/pooling", {"input": TEXTS, "task": task}).status == 424
    said = refused(prompted["classifier"], "/pooling", {"input": TEXTS, "dimensions": 2})
    assert said == (422, "`dimensions` is for vectors, and this model gives scores; leave it out")


def test_matrices_in_base64_are_row_after_row(prompted):
    service, fields = prompted["multi_vector"], {"encoding_format": "base64", "embed_dtype": "float16"}
    import base64

    rows = [np.array(row) for row in pooled(service)]
    for found, expected in zip(pooled(service, **fields), rows, strict=True):
        flat = np.frombuffer(base64.b64decode(found), "<f2")
        np.testing.assert_allclose(flat.reshape(expected.shape), expected, atol=1e-3)


def test_vllm_s_classes(prompted):
    service = prompted["classifier"]
    answer = post(service, "/v1/classify", {"input": TEXTS})
    expected = post(service, "/predict", {"inputs": [[text] for text in TEXTS]})
    for item, rows in zip(answer["data"], expected, strict=True):
        shares = {row["label"]: row["score"] for row in rows}
        assert (item["label"], item["num_classes"]) == (rows[0]["label"], 3)
        assert near(item["probs"], [shares["bad"], shares["fair"], shares["good"]])
    assert get(service, "/version") == {"version": __version__}


def test_llama_cpp_s_embedding(prompted):
    service = prompted["embedding"]
    for name in ("content", "input"):
        answer = post(service, "/embedding", {name: TEXTS})
        assert near([item["embedding"][0] for item in answer], embed(service, TEXTS))
    (raw,) = post(service, "/embedding", {"content": TEXTS[0], "embd_normalize": -1})
    assert near(raw["embedding"], embed(service, TEXTS[0], normalize=False))


@pytest.mark.parametrize("path", ["/reranking", "/v1/reranking"])
def test_llama_cpp_s_reranking_is_jina_s_or_tei_s(prompted, path):
    service = prompted["reranker"]
    ranks = post(service, path, {"query": QUERY, "texts": TEXTS})
    assert near(ranks, post(service, "/rerank", {"query": QUERY, "texts": TEXTS}))
    body = {"query": QUERY, "documents": TEXTS, "top_n": 2}
    assert near(post(service, path, body)["results"], post(service, "/v1/rerank", body)["results"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_voyage_s_clients_read_data(prompted, path):
    service = prompted["reranker"]
    body = {"query": QUERY, "documents": TEXTS, "model": "m"}
    for fields in ({"top_k": 2}, {"top_k": None, "truncation": True}, {"truncation": True}):
        answer = post(service, path, {**body, **fields})
        assert near(answer["data"], answer["results"])
        assert len(answer["data"]) == fields.get("top_k") or len(TEXTS)
    assert "data" not in post(service, path, {**body, "top_n": 2})
    answer = post(service, "/v1/rerank", {**body, "top_k": 2, "return_documents": True})
    assert [item["document"] for item in answer["data"]] == [TEXTS[item["index"]] for item in answer["data"]]


# -- Vertex and Azure --------------------------------------------------------------------------------------------------


def test_vertex_s_instances_are_requests_of_their_own(prompted):
    service = prompted["embedding"]
    instances = [{"inputs": TEXTS}, {"inputs": TEXTS[0], "normalize": False}, {"input": TEXTS[0]}]
    found = post(service, "/vertex", {"instances": instances, "parameters": {}})["predictions"]
    assert near(found[:2], [embed(service, TEXTS), embed(service, TEXTS[0], normalize=False)])
    assert near(found[2]["data"][0]["embedding"], embed(service, TEXTS[0])[0])
    ranking = {"query": QUERY, "texts": TEXTS}
    assert near(
        post(prompted["reranker"], "/vertex", {"instances": [ranking]})["predictions"],
        [post(prompted["reranker"], "/rerank", ranking)],
    )
    labels = post(prompted["classifier"], "/vertex", {"instances": [{"inputs": TEXTS[0]}]})["predictions"]
    assert near(labels, [post(prompted["classifier"], "/predict", {"inputs": TEXTS[0]})])


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([], "`instances` list should have at least 1 item"),
        ([{"inputs": "a"}, {"inputs": 3}], "`instances.1.inputs` must be a string"),
        ([{"inputs": "a"}, {"inputs": ["a", ""]}], "`instances.1.inputs` cannot be empty (input 1)"),
        ([{"inputs": "a", "dimensions": 999}], "`instances.0.dimensions` must be between 1 and 48"),
        ([{"inputs": "a", "stride": 2}], "`instances.0.stride` 2 is not possible here"),
        (["a"], "`instances.0` should be an object"),
    ],
)
def test_an_instance_that_fails_is_named(prompted, instances, message):
    found = refused(prompted["embedding"], "/vertex", {"instances": instances})
    assert found[1][: len(message)] == message


def test_azure_s_deployment_is_the_model(prompted):
    service = prompted["embedding"]
    for path in ("/openai/deployments/any/embeddings", "/openai/v1/embeddings"):
        answer = post(service, path, {"input": TEXTS, "model": "m"})
        assert near([item["embedding"] for item in answer["data"]], embed(service, TEXTS))
    said = json.loads(call(service, "/openai/deployments/any/embeddings", {"input": 3}).body)
    assert said["error"]["message"].startswith("`input` must be a string")


def test_azure_s_key(prompted):
    service = start(prompted["embedding"].model.checkpoint, api_key="secret")
    try:
        path, body = "/openai/deployments/any/embeddings", {"input": "a"}
        for headers, status in (({"api_key": "secret"}, 200), ({"api_key": "other"}, 401), ({}, 401)):
            assert call(service, path, body, **headers).status == status
        both = {"api_key": "secret", "authorization": "Bearer other"}
        assert call(service, path, body, **both).status == 401
    finally:
        service.close()


def test_the_deployment_in_the_path_is_before_the_model_in_the_body(prompted, monkeypatch):
    asked = []
    resolve = Registry.resolve
    monkeypatch.setattr(
        Registry, "resolve", lambda self, ability=None, name=None: asked.append(name) or resolve(self, ability, name)
    )
    call(prompted["embedding"], "/openai/deployments/mine/embeddings", {"input": "a", "model": "other"})
    assert asked == ["mine"]
