"""Rerank, predict, entities, sparse and multi-vector through every dialect, on tiny models of each kind."""

import base64
import json

import numpy as np
import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bei.checkpoint.load import read
from bei.errors import SetupError
from bei.serving.service import Service
from bei.tasks.late_interaction import maxsim
from tests.support.calls import PATHS, bodies, call, near, post, refused
from tests.support.task_models import (
    KINDS,
    OWN,
    QUERY,
    TEXTS,
    classifier,
    start,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: build(tmp_path_factory.mktemp(kind)) for kind, build in KINDS.items()}


@pytest.fixture(scope="module")
def services(checkpoints):
    services = {kind: start(checkpoint) for kind, checkpoint in checkpoints.items()}
    yield services
    for service in services.values():
        service.close()


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """A reranker and a classifier of several labels, whose logits are all above 17."""

    def build(kind: str, labels: list[str], **options) -> Service:
        folder = tmp_path_factory.mktemp(kind)
        classifier(folder, labels, **options)
        stored = load_file(folder / "model.safetensors")
        save_file({**stored, "classifier.bias": stored["classifier.bias"] + 30}, folder / "model.safetensors")
        return start(read(folder, "tiny"), rerank_order="score")

    several = {"problem_type": "multi_label_classification"}
    services = {"reranker": build("reranker", ["yes"]), "classifier": build("classifier", ["a", "b", "c"], **several)}
    yield services
    for service in services.values():
        service.close()


@pytest.fixture
def reranker(services):
    return services["reranker"]


@pytest.fixture
def predictor(services):
    return services["classifier"]


# -- rerank ----------------------------------------------------------------------------------------------------------


def test_rerank_keeps_the_order_of_the_texts(reranker):
    answer = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS})
    assert [list(rank) for rank in answer] == [["index", "score"]] * 4
    assert [rank["index"] for rank in answer] == [0, 1, 2, 3]
    assert all(0 < rank["score"] < 1 for rank in answer)
    with_text = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    assert [rank["text"] for rank in with_text] == TEXTS
    raw = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    logits = np.array([rank["score"] for rank in raw])
    np.testing.assert_allclose([rank["score"] for rank in answer], 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_rerank_best_first_where_the_settings_say_so(checkpoints, reranker):
    service = start(checkpoints["reranker"], rerank_order="score")
    answer = post(service, "/rerank", {"query": QUERY, "texts": TEXTS})
    service.close()
    scores = [rank["score"] for rank in answer]
    assert scores == sorted(scores, reverse=True)
    in_order = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS})
    assert near(sorted(answer, key=lambda rank: rank["index"]), in_order)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_scores_that_are_all_1_are_ranked_by_their_logits(sure, path):
    """A sigmoid of more than 17 is 1 in float32."""
    service = sure["reranker"]
    texts = TEXTS[::-1]
    raw = post(service, "/rerank", {"query": QUERY, "texts": texts, "raw_scores": True})
    order = [rank["index"] for rank in raw]
    assert raw[-1]["score"] > 17
    assert order != sorted(order)
    answer = post(service, path, {"query": QUERY, "texts" if path == "/rerank" else "documents": texts})
    ranks = answer if path == "/rerank" else answer["results"]
    assert [rank["index"] for rank in ranks] == order
    assert {rank.get("score", rank.get("relevance_score")) for rank in ranks} == {1.0}


@pytest.mark.parametrize(("path", "key"), [("/predict", "inputs"), ("/classify", "input")])
def test_labels_that_are_all_1_are_ranked_by_their_logits(sure, path, key):
    service = sure["classifier"]
    text = "the cat" if path == "/predict" else ["the cat"]
    raw, answer = (post(service, path, {key: text, "raw_scores": raw}) for raw in (True, False))
    raw, answer = (value["data"][0] if path == "/classify" else value for value in (raw, answer))
    names = [prediction["label"] for prediction in raw]
    assert min(prediction["score"] for prediction in raw) > 17
    assert names != sorted(names)
    assert [prediction["label"] for prediction in answer] == names
    assert {prediction["score"] for prediction in answer} == {1.0}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_cohere_s_rerank(reranker, path):
    scores = [rank["score"] for rank in post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS})]
    answer = post(reranker, path, {"query": QUERY, "documents": TEXTS, "return_documents": True, "model": "m"})
    results = answer["results"]
    assert [result["index"] for result in results] == list(np.argsort(-np.array(scores), kind="stable"))
    assert [result["relevance_score"] for result in results] == sorted(scores, reverse=True)
    documents = [result.get("document") for result in results]
    assert documents == ([None] * 4 if path == "/rerank" else [{"text": TEXTS[r["index"]]} for r in results])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 20
    assert answer["meta"]["billed_units"]["search_units"] == 1
    assert (answer["object"], answer["model"], bool(answer["id"])) == ("rerank", "tiny", True)
    for body in ({"top_n": 2}, {"top_n": 2, "max_tokens_per_doc": None}):
        assert len(post(reranker, path, {"query": QUERY, "documents": TEXTS, **body})["results"]) == 2
    for top_n in (0, None, 9):
        assert len(post(reranker, path, {"query": QUERY, "documents": TEXTS, "top_n": top_n})["results"]) == 4
    as_objects = post(reranker, path, {"query": QUERY, "documents": [{"text": text} for text in TEXTS]})
    assert [r["index"] for r in as_objects["results"]] == [r["index"] for r in results]


def test_documents_are_cut_to_max_tokens_per_doc(reranker):
    def score(**body) -> float:
        return post(reranker, "/v2/rerank", {"query": QUERY, **body})["results"][0]["relevance_score"]

    assert score(documents=["the cat sat"], max_tokens_per_doc=2) == score(documents=["the cat"])
    assert score(documents=["the cat sat"]) != score(documents=["the cat"])
    body = {"query": QUERY, "documents": ["the cat sat", "the cat"], "max_tokens_per_doc": 2}
    assert call(reranker, "/v2/rerank", body).headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"query": QUERY, "texts": []}, 400, "`texts` cannot be empty"),
        ("/rerank", {"query": QUERY, "documents": []}, 400, "`documents` cannot be empty"),
        ("/rerank", {"texts": TEXTS}, 422, "`query` is required"),
        ("/rerank", {"query": QUERY}, 422, "`texts` is required"),
        ("/rerank", {"query": 3, "texts": TEXTS}, 422, "`query` should be a valid string"),
        ("/rerank", {"query": "", "texts": ["a", ""]}, 400, "`texts` cannot be empty (input 1)"),
        ("/v1/rerank", {"query": QUERY, "documents": [{"title": "x"}]}, 422, "`documents` must be a list of strings"),
        ("/v2/rerank", {"query": QUERY, "documents": TEXTS, "top_n": -1}, 422, "`top_n` should be greater than or eq"),
        (
            "/rerank",
            {"query": "a " * 90, "texts": ["b"], "truncate": False},
            422,
            "`texts` must have at most 64 tok",
        ),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 422, "`inputs` must be lists of one text or of a pair"),
        ("/predict", {"inputs": []}, 400, "`inputs` cannot be empty"),
        ("/predict", {"inputs": 3}, 422, "`inputs` must be a string, a pair"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 422, "`text_1` has 2 texts and `text_2` 3"),
        ("/v1/score", {"text_1": "a"}, 422, "`text_2` is required"),
    ],
)
def test_bad_bodies(reranker, path, body, status, message):
    found = refused(reranker, path, body)
    assert (found[0], found[1][: len(message)]) == (status, message)


# -- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reranker", "embedding", "multi_vector"])
def test_scores_of_pairs(services, kind):
    service = services[kind]
    answer = post(service, "/score", {"text_1": QUERY, "text_2": TEXTS})
    scores = [item["score"] for item in answer["data"]]
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(i, "score") for i in range(4)]
    many = post(service, "/v1/score", {"queries": [QUERY] * 4, "documents": TEXTS})
    np.testing.assert_allclose([item["score"] for item in many["data"]], scores, atol=1e-6)
    one = post(service, "/v1/score", {"data_1": QUERY, "data_2": TEXTS[2], "max_tokens_per_doc": 0})
    np.testing.assert_allclose(one["data"][0]["score"], scores[2], atol=1e-5)
    if kind == "embedding":
        cosines = post(service, "/similarity", {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}})
        np.testing.assert_allclose(scores, cosines, atol=1e-6)
    else:
        ranks = post(service, "/rerank", {"query": QUERY, "texts": TEXTS})
        np.testing.assert_allclose(scores, [rank["score"] for rank in ranks], atol=1e-6)


def test_as_many_pairs_as_texts_are_allowed(services):
    """Of 2,048 pairs an embedding model reads up to 4,096 texts."""
    body = {"text_1": [f"cat {i}" for i in range(2048)], "text_2": [f"dog {i}" for i in range(2048)]}
    assert len(post(services["embedding"], "/score", body)["data"]) == 2048
    assert call(services["embedding"], "/score", {**body, "text_2": "a", "text_1": "b"}).status == 200
    too_many = {"text_1": "cat", "text_2": [f"dog {i}" for i in range(2049)]}
    assert refused(services["embedding"], "/score", too_many)[0] == 413


def test_nothing_left_to_compare_scores_nothing():
    some, none = np.ones((2, 4), np.float32), np.ones((0, 4), np.float32)
    assert maxsim(some, some, mean=False) == 8
    assert maxsim(some, some, mean=True) == 4
    assert maxsim(some, none, mean=True) == maxsim(none, some, mean=True) == 0


def test_use_activation_false_gives_logits(reranker):
    raw = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    answer = post(reranker, "/score", {"text_1": QUERY, "text_2": TEXTS, "use_activation": False})
    np.testing.assert_allclose([i["score"] for i in answer["data"]], [r["score"] for r in raw], atol=1e-6)


# -- predict ---------------------------------------------------------------------------------------------------------


def test_the_shape_of_predict_follows_the_inputs(predictor):
    flat = post(predictor, "/predict", {"inputs": "the cat"})
    assert {row["label"] for row in flat} == {"bad", "fair", "good"}
    assert sum(row["score"] for row in flat) == pytest.approx(1, abs=1e-5)
    assert [row["score"] for row in flat] == sorted((row["score"] for row in flat), reverse=True)
    assert near(post(predictor, "/predict", {"inputs": ["the cat"]}), flat)
    assert near(post(predictor, "/predict", {"inputs": [["the cat"]]}), [flat])
    for parameters in ({}, None):
        assert near(post(predictor, "/predict", {"inputs": "the cat", "parameters": parameters}), [flat])
    pair = post(predictor, "/predict", {"inputs": ["the cat", "a dog"]})
    assert isinstance(pair[0], dict)
    both = post(predictor, "/predict", {"inputs": [["the cat"], ["the cat", "a dog"]]})
    assert near(both, [flat, pair])


def test_raw_scores_and_the_hub_s_parameters(predictor):
    raw = {row["label"]: row["score"] for row in post(predictor, "/predict", {"inputs": "a cat", "raw_scores": True})}
    top = {"inputs": "a cat", "parameters": {"top_k": 1}}
    assert [[row["label"] for row in rows] for rows in post(predictor, "/predict", top)] == [[max(raw, key=raw.get)]]
    for function, of in (("none", lambda x: x), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)))):
        body = {"inputs": "a cat", "parameters": {"function_to_apply": function}}
        for row in post(predictor, "/predict", body)[0]:
            assert row["score"] == pytest.approx(of(raw[row["label"]]), abs=1e-6)


def test_predict_of_a_reranker(reranker):
    (row,) = post(reranker, "/predict", {"inputs": [QUERY, TEXTS[0]]})
    rank = post(reranker, "/rerank", {"query": QUERY, "texts": TEXTS[:1]})[0]
    assert (row["label"], row["score"]) == ("relevant", pytest.approx(rank["score"], abs=1e-6))


def test_several_labels_at_once(tmp_path):
    checkpoint = classifier(tmp_path, ["a", "b"], problem_type="multi_label_classification")
    service = start(checkpoint)
    scores, raw = (
        {row["label"]: row["score"] for row in post(service, "/predict", {"inputs": "a cat", "raw_scores": of})}
        for of in (False, True)
    )
    service.close()
    assert scores == pytest.approx({label: 1 / (1 + np.exp(-logit)) for label, logit in raw.items()}, abs=1e-6)


def test_infinity_s_classify(predictor):
    answer = post(predictor, "/classify", {"input": TEXTS, "model": "m"})
    assert (answer["object"], len(answer["data"]), len(answer["data"][0])) == ("classify", 4, 3)
    native = post(predictor, "/predict", {"inputs": [[text] for text in TEXTS]})
    assert near(answer["data"], native)


# -- entities --------------------------------------------------------------------------------------------------------


def test_predict_tokens(services):
    service, texts = services["entities"], ["the cat sat", "Red, BLUE dog"]
    body = {"truncate": True, "raw_scores": False, "aggregation_strategy": "simple", "truncation_direction": "Right"}
    nested = post(service, "/predict_tokens", {"inputs": [[text] for text in texts], **body})
    assert near(post(service, "/predict_tokens", {"inputs": texts, **body}), nested)
    assert near(post(service, "/predict_tokens", {"inputs": texts[0], **body}), nested[:1])
    hub = {"inputs": texts[0], "parameters": {"aggregation_strategy": "simple"}}
    assert near(post(service, "/predict_tokens", hub), nested[:1])
    for text, entities in zip(texts, nested, strict=True):
        for entity in entities:
            assert list(entity) == ["token", "token_id", "start", "end", "results"]
            assert entity["token"] == text[entity["start"] : entity["end"]]
            assert set(entity["results"]) <= {"PER"}
    (tokens,) = post(service, "/predict_tokens", {"inputs": "the cat"})
    assert [token["token"] for token in tokens] == ["[CLS]", "the", "cat", "[SEP]"]
    assert [token["token_id"] for token in tokens] == [2, 5, 7, 3]
    assert all(len(token["results"]) == 1 for token in tokens)


def test_entities_refuse(services):
    service = services["entities"]
    for inputs in ([["a", "b"]], 3, [3], [[]], {}, None, True):
        assert refused(service, "/predict_tokens", {"inputs": inputs})[0] == 422
    assert refused(service, "/predict_tokens", {"inputs": "a", "aggregation_strategy": "best"})[0] == 422
    assert refused(service, "/predict_tokens", {"inputs": ["a", ""]}) == (400, "`inputs` cannot be empty (input 1)")
    assert refused(service, "/predict_tokens", {"inputs": "cat " * 99, "truncate": False})[0] == 422


# -- sparse, multi-vector, Cohere's embeddings -----------------------------------------------------------------------


def test_embed_sparse(services):
    alone = post(services["sparse"], "/embed_sparse", {"inputs": TEXTS[0]})
    together = post(services["sparse"], "/embed_sparse", {"inputs": TEXTS})
    assert len(alone) == 1 < len(together)
    indices = [term["index"] for term in alone[0]]
    assert indices == sorted(set(indices))
    assert all(term["value"] > 0 for terms in together for term in terms)
    np.testing.assert_allclose([t["value"] for t in alone[0]], [t["value"] for t in together[0]], atol=1e-5)


def test_embed_all_of_a_colbert_is_what_is_compared(services):
    service = services["multi_vector"]
    (document,) = post(service, "/embed_all", {"inputs": TEXTS[1]})
    (query,) = post(service, "/embed_all", {"inputs": QUERY, "prompt_name": "query"})
    assert len(query) == 8
    maxsim = (np.array(query) @ np.array(document).T).max(1).sum()
    rank = post(service, "/rerank", {"query": QUERY, "texts": [TEXTS[1]]})[0]
    assert rank["score"] == pytest.approx(maxsim, abs=1e-4)


def test_cohere_s_embed(services):
    service = services["embedding"]
    native = np.array(post(service, "/embed", {"inputs": TEXTS, "prompt_name": "query"}))
    floats = post(service, "/v1/embed", {"texts": TEXTS, "model": "m", "input_type": "search_query"})
    assert floats["response_type"] == "embeddings_floats"
    np.testing.assert_allclose(floats["embeddings"], native, atol=1e-5)
    passage = post(service, "/embed", {"inputs": TEXTS, "prompt_name": "passage"})
    types = ["float", "base64", "binary", "ubinary"]
    by_type = {"texts": TEXTS, "input_type": "search_document", "embedding_types": types, "truncate": "END"}
    for path in ("/v1/embed", "/v2/embed"):
        answer = post(service, path, by_type)
        assert answer["response_type"] == "embeddings_by_type"
        assert answer["meta"]["api_version"]["version"] == path[2]
        embeddings = answer["embeddings"]
        np.testing.assert_allclose(embeddings["float"], passage, atol=1e-5)
        decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in embeddings["base64"]]
        np.testing.assert_allclose(decoded, embeddings["float"], atol=1e-7)
        bits = np.packbits(np.array(embeddings["float"]) > 0, axis=1)
        assert embeddings["ubinary"] == bits.tolist()
        assert embeddings["binary"] == (bits.astype(int) - 128).tolist()
    two = post(service, "/v2/embed", {"texts": TEXTS, "output_dimension": 8})
    assert list(two["embeddings"]) == ["float"]
    assert np.array(two["embeddings"]["float"]).shape == (4, 8)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"texts": []}, 400, "`texts` cannot be empty"),
        ({"images": ["x"]}, 422, "`images` ['x'] is not possible here"),
        ({"texts": ["a"], "output_dimension": 99}, 422, "`output_dimension` must be between 1 and 48"),
        ({"texts": ["a " * 99], "truncate": "NONE"}, 422, "`texts` must have at most 64 tokens"),
    ],
)
def test_cohere_s_embed_refuses(services, body, status, message):
    found = refused(services["embedding"], "/v2/embed", body)
    assert (found[0], found[1][: len(message)]) == (status, message)


# -- the model's own task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_bare_path_is_the_model_s_own_task(services, kind, path):
    route, body = OWN[kind]
    assert services[kind].model.route == route
    assert near(post(services[kind], path, body), post(services[kind], route, body))


def test_the_bare_path_of_a_reranker_speaks_cohere_too(reranker):
    answer = post(reranker, "/", {"query": QUERY, "documents": TEXTS})
    assert len(answer["results"]) == 4


def test_the_default_route_can_be_another_that_fits(checkpoints):
    service = start(checkpoints["reranker"], route="/predict")
    (row,) = post(service, "/", {"inputs": [QUERY, TEXTS[0]]})
    service.close()
    assert row["label"] == "relevant"


@pytest.mark.parametrize(
    ("kind", "route", "remedy"),
    [
        ("embedding", "/rerank", "set /v1/embeddings"),
        ("classifier", "/rerank", "set /predict"),
        ("reranker", "/v1/embeddings", "set /rerank or /predict"),
        ("entities", "/predict", "set /predict_tokens"),
        ("sparse", "/v1/embeddings", "leave it out for /embed_sparse"),
        ("multi_vector", "/predict", "set /rerank"),
    ],
)
def test_a_default_route_that_does_not_fit_is_refused_at_load(checkpoints, kind, route, remedy):
    with pytest.raises(SetupError, match=f"webserver_default_route: {route} does not fit tiny.*{remedy}"):
        start(checkpoints[kind], route=route)


RANKERS = {"reranker", "list_reranker", "multi_vector"}
WRONG = [
    ("/embed", {"inputs": "a"}, "Model is not an embedding model", {"embedding"}),
    ("/v1/embeddings", {"input": "a"}, "Model is not an embedding model", {"embedding"}),
    ("/v2/embed", {"texts": ["a"]}, "Model is not an embedding model", {"embedding"}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "Model is not an emb", {"embedding"}),
    ("/embed_all", {"inputs": "a"}, "", {"embedding", "multi_vector"}),
    ("/embed_sparse", {"inputs": "a"}, "Model is not an embedding model with SPLADE pooling", {"sparse"}),
    ("/rerank", {"query": "a", "texts": ["b"]}, "model is not a re-ranker model", RANKERS),
    ("/v2/rerank", {"query": "a", "documents": ["b"]}, "model is not a re-ranker", RANKERS),
    ("/score", {"text_1": "a", "text_2": "b"}, "Model scores no", {"reranker", "multi_vector", "embedding"}),
    ("/predict", {"inputs": "a"}, "Model is not a classifier model", {"classifier", "reranker"}),
    ("/classify", {"input": "a"}, "Model is not a classifier model", {"classifier", "reranker"}),
    ("/predict_tokens", {"inputs": "a"}, "Model is not a token classification model", {"entities"}),
]


@pytest.mark.parametrize(("path", "body", "message", "fitting"), WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_other_tasks_are_refused_in_teis_words(services, kind, path, body, message, fitting):
    reply = call(services[kind], path, body)
    if kind in fitting:
        assert reply.status == 200
        return
    assert reply.status == 424
    assert message in reply.body.decode()
    assert f"POST {services[kind].model.route}" in reply.body.decode() or "/embed_sparse" in reply.body.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_info_says_what_tei_clients_read(services, kind):
    info = json.loads(call(services[kind], "/info", method="GET").body)
    (model_type,) = info["model_type"]
    expected = {
        "classifier": "classifier",
        "entities": "classifier",
        **dict.fromkeys(("reranker", "list_reranker"), "reranker"),
    }
    assert model_type == expected.get(kind, "embedding")
    assert (info["task"], info["default_route"]) == (kind, services[kind].model.route)
    if kind == "classifier":
        of = info["model_type"]["classifier"]
        assert of["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
        assert of["label2id"] == {"bad": 0, "fair": 1, "good": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_carry_the_cost(services, kind):
    route, body = OWN[kind]
    headers = call(services[kind], route, body).headers
    assert int(headers["x-compute-tokens"]) > 8
    assert int(headers["x-compute-characters"]) > 30
    assert "x-inference-time" in headers


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*KINDS]), st.sampled_from(PATHS), bodies)
def test_no_body_gives_a_5xx_from_any_kind_of_model(services, kind, path, body):
    reply = call(services[kind], path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert reply.status < 500
    json.loads(reply.body)


@pytest.mark.parametrize("kind", KINDS)
def test_msgpack_carries_the_same(services, kind):
    route, body = OWN[kind]
    packed = call(services[kind], route, body, accept="application/msgpack, application/json")
    assert packed.headers["content-type"] == "application/msgpack"
    assert near(ormsgpack.unpackb(packed.body), post(services[kind], route, body))
