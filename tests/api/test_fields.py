"""Every field that changes an answer, of every family, on every route: obeyed, as numbers show, or refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bei.api import ROUTES
from bei.api.fields import CHANGING
from bei.checkpoint.texts import Prompts
from tests.support.calls import call, near, post, refused, said
from tests.support.task_models import LONG, OWN, start

TEXTS = [LONG, "a big dog", "the cat sat on the mat"]

EMBED = {"inputs": TEXTS}
SIMILARITY = {"inputs": {"source_sentence": TEXTS[1], "sentences": TEXTS}}
RERANK, DOCUMENTS = {"query": TEXTS[2], "texts": TEXTS}, {"query": TEXTS[2], "documents": TEXTS}
PREDICT, SCORE = {"inputs": [[text] for text in TEXTS]}, {"text_1": TEXTS[2], "text_2": TEXTS}
RANKING = {"query": {"text": TEXTS[2]}, "passages": [{"text": text} for text in TEXTS]}
AZURE = "/openai/deployments/{model}/embeddings"
WITHOUT_ANY = {"/vertex", "/api/show"}  # their instances have the fields, or they read no text
BODIES = [
    *(("embedding", path, {"input": TEXTS}) for path in ("/v1/embeddings", "/embeddings", "/", "/invocations")),
    *(("embedding", path, {"input": TEXTS}) for path in ("/openai/v1/embeddings", AZURE, "/api/embed", "/pooling")),
    ("embedding", "/api/embeddings", {"prompt": LONG}),
    ("embedding", "/api/show", {"model": "tiny"}),
    ("embedding", "/embedding", {"content": TEXTS}),
    ("embedding", "/vertex", {"instances": [EMBED]}),
    *(("embedding", path, EMBED) for path in ("/embed", "/embed_all", "/", "/invocations")),
    *(("embedding", path, {"texts": TEXTS}) for path in ("/v1/embed", "/v2/embed")),
    *(("embedding", path, SIMILARITY) for path in ("/similarity", "/")),
    ("embedding", "/tokenize", EMBED),
    ("embedding", "/decode", {"ids": [[2, 5, 7, 3]]}),
    ("sparse", "/embed_sparse", EMBED),
    ("sparse", "/", EMBED),
    ("multi_vector", "/embed_all", EMBED),
    *(
        ("reranker", path, RERANK)
        for path in ("/rerank", "/", "/invocations", "/reranking", "/v1/reranking", "/v1/rerank")
    ),
    *(("reranker", path, DOCUMENTS) for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/", "/v1/reranking")),
    ("reranker", "/v1/ranking", RANKING),
    ("multi_vector", "/v1/ranking", RANKING),
    ("multi_vector", "/rerank", RERANK),
    ("multi_vector", "/v2/rerank", DOCUMENTS),
    *(("reranker", path, SCORE) for path in ("/score", "/v1/score")),
    ("embedding", "/score", SCORE),
    ("multi_vector", "/score", SCORE),
    ("classifier", "/predict", PREDICT),
    ("reranker", "/predict", {"inputs": [[TEXTS[2], text] for text in TEXTS]}),
    ("classifier", "/", PREDICT),
    *((kind, path, {"input": TEXTS}) for kind in ("classifier", "reranker") for path in ("/v1/classify", "/pooling")),
    *((kind, "/pooling", {"input": TEXTS}) for kind in ("multi_vector", "entities")),
    ("classifier", "/classify", {"input": TEXTS}),
    ("entities", "/predict_tokens", {"inputs": TEXTS, "aggregation_strategy": "simple"}),
    ("entities", "/", {"inputs": TEXTS}),
]
VALUES = {
    "truncate": (False, "NONE", "none", "START", "Start"),
    "truncation": (False,),
    "truncation_direction": ("left", "Left"),
    "truncation_side": ("left",),
    "truncate_prompt_tokens": (5,),
    "max_tokens": (4,),
    "max_tokens_per_doc": (2,),
    "max_tokens_per_query": (2,),
    "max_chunks_per_doc": (1,),
    "overlap_tokens": (2,),
    "stride": (2,),
    "padding": ("max_length",),
    "add_special_tokens": (False,),
    "skip_special_tokens": (False,),
    "prompt_name": ("query",),
    "instruction": ("it was ",),
    "instruct": ("it was ",),
    "input_type": ("query", "search_document", "passage"),
    "task": ("retrieval.query", "retrieval.passage", "embed", "token_embed", "classify"),
    "chat_template": ("{{ messages }}",),
    "chat_template_kwargs": ({"a": 1},),
    "add_generation_prompt": (True,),
    "continue_final_message": (True,),
    "lora_path": ("a",),
    "embed_overrides": ([[1.0]],),
    "messages": ([{"role": "user", "content": "a"}],),
    "images": (["data:"],),
    "modality": ("image",),
    "rank_fields": (["title"],),
    "dimensions": (8,),
    "output_dimension": (8,),
    "normalize": (False,),
    "normalized": (False,),
    "embd_normalize": (-1, 1),
    "encoding_format": ("base64", "bytes"),
    "embedding_type": ("base64", ["base64"], "binary", "int8"),
    "encoding_type": ("base64", "ubinary"),
    "embedding_types": (["base64"], ["int8"], ["float", "uint8"]),
    "embed_dtype": ("float16", "bfloat16"),
    "endianness": ("big",),
    "output_dtype": ("int8", "uint8", "binary", "ubinary"),
    "late_chunking": (True,),
    "late_chunking_params": ({"chunk_size": 2},),
    "chunks": ([[0, 1]],),
    "return_multivector": (True,),
    "use_activation": (False,),
    "activation": (False,),
    "softmax": (False,),
    "raw_scores": (True,),
    "function_to_apply": ("none",),
    "apply_softmax": (True,),
    "label_token_ids": ([1, 2],),
    "item_first": (True,),
    "top_n": (1,),
    "top_k": (1,),
    "candidate_labels": (["cat", "dog"], "cat, dog"),
    "hypothesis_template": ("it is {}",),
    "labels": (["cat"], {"cat": "an animal"}),
    "threshold": (0.1,),
    "flat_ner": (False,),
    "multi_label": (True,),
    "aggregation_strategy": ("max",),
    "ignore_labels": (["PER"],),
    "parameters": ({"truncate": False}, {"top_k": 1}, {"aggregation_strategy": "max"}),
}
LENGTH = ("normalize", "normalized", "use_activation", "embd_normalize")
NO_EFFECT = {
    # TEI's client sends it, and TEI reads it at neither
    ("normalize", "/embed_all"),
    ("normalize", "/embed_sparse"),
    ("normalize", "/"),  # of the sparse model
    # windows, where nothing is cut
    ("truncation_direction", "/predict_tokens"),
    ("truncation_direction", "/"),
    # MaxSim and cosines have no activation
    ("use_activation", "/score"),
    ("use_activation", "/rerank"),
    ("use_activation", "/v2/rerank"),
    ("raw_scores", "/score"),
    ("raw_scores", "/rerank"),
    ("raw_scores", "/v2/rerank"),
    # its words are of one token: to all strategies the same (test_entities.py has the others)
    ("aggregation_strategy", "/predict_tokens"),
    # as it is, unless the client wants length 1
    *((name, "/api/embeddings") for name in LENGTH),
    # a ColBERT model's vectors have length 1
    *(("multi_vector", name, "/pooling") for name in LENGTH),
    # labels are left out of entities, and not of tokens
    ("ignore_labels", "/"),
}
AS_EVER = {
    "embedding": ("embed",),
    "classifier": ("classify",),
    # it reads texts as documents unasked
    "multi_vector": ("search_document", "passage", "retrieval.passage", "token_embed"),
    "reranker": ({"top_k": 1}, "classify"),  # of one label
}


VARYING = ("id", "created", "usage", "meta", "total_duration", "prompt_eval_count")


def plain(answer):
    """An answer without the parts that vary, or that only echo the request."""
    if isinstance(answer, dict) and {"results", "data"} <= answer.keys():
        return plain({key: value for key, value in answer.items() if key != "data"})  # the same in Voyage's shape
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items() if key not in VARYING}
    return [plain(item) for item in answer] if isinstance(answer, list) else answer


def outcome(service, path: str, body: dict, name: str, baseline) -> str:
    reply = call(service, path, body)
    answer = json.loads(reply.body)
    if reply.status == 200:
        return "ignored" if near(plain(answer), baseline) else "obeyed"
    assert reply.status == 422 or (name, reply.status) == ("task", 424), (body, answer)
    message = said(answer)
    if name == "task" and reply.status == 424:
        return "refused"
    inner = body["parameters"] if name == "parameters" else {}
    long = (name.startswith("trunc") or "truncate" in inner) and "tokens. Given" in message
    if name in ("input_type", "task") and "`prompt_name` cannot be set with dual inputs" in message:
        return "refused"
    return "obeyed" if long else "refused" if any(f"{of}`" in message for of in (name, *inner)) else message


def test_the_matrix_has_every_route_and_every_field():
    of_models = {route.path for route in ROUTES if route.method == "POST" and route.body and not route.of_server}
    assert {path for _, path, _ in BODIES} == of_models
    assert set(VALUES) == set(CHANGING)


@pytest.mark.parametrize(("kind", "path", "body"), BODIES, ids=lambda of: of if isinstance(of, str) else "-".join(of))
def test_no_field_that_changes_an_answer_is_ignored(prompted, kind, path, body):
    service = prompted[kind]
    baseline = plain(post(service, path, body))
    found, ignored = {}, []
    for name, values in VALUES.items():
        for value in values:
            was = found[(name, str(value))] = outcome(service, path, {**body, name: value}, name, baseline)
            assert was in ("obeyed", "refused", "ignored"), (name, value, was)
            known = {(name, path), (kind, name, path)} & NO_EFFECT or value in AS_EVER.get(kind, ())
            if was == "ignored" and not known:
                ignored.append((name, value))
        assert call(service, path, {**body, name: None}).status == 200, name
    assert ignored == []
    assert "refused" in found.values()
    assert ("obeyed" in found.values()) == (path not in WITHOUT_ANY)


@pytest.mark.parametrize(("kind", "path", "body"), BODIES, ids=lambda of: of if isinstance(of, str) else "-".join(of))
def test_what_asks_for_nothing_is_taken_everywhere(prompted, kind, path, body):
    baseline = plain(post(prompted[kind], path, body))
    for name, values in CHANGING.items():
        for value in values:
            shape = name == "embedding_types" or (name == "parameters" and "predict" in OWN[kind][0])
            if name not in body and not shape:
                assert near(plain(post(prompted[kind], path, {**body, name: value})), baseline), (name, value)


@pytest.mark.parametrize(("kind", "path", "body"), BODIES, ids=lambda of: of if isinstance(of, str) else "-".join(of))
def test_a_model_that_is_no_name_is_refused_everywhere(prompted, kind, path, body):
    for model in (3, True, ["m"], {}):
        assert refused(prompted[kind], path, {**body, "model": model}) == (422, "`model` should be a valid string")


def test_a_field_that_no_family_knows_is_ignored(prompted):
    for kind, path, body in BODIES:
        more = {**body, "a_field_of_tomorrow": {"x": [1, 2]}, "user": 3, "metadata": {}}
        assert near(plain(post(prompted[kind], path, more)), plain(post(prompted[kind], path, body)))


# -- the numbers -----------------------------------------------------------------------------------------------------


def embed(service, text: str, **more) -> list[float]:
    return post(service, "/v1/embeddings", {"input": text, **more})["data"][0]["embedding"]


def test_texts_are_cut_to_as_many_tokens_as_asked(prompted, tmp_path):
    service = prompted["embedding"]
    assert embed(service, LONG, truncate_prompt_tokens=5) == pytest.approx(embed(service, "the cat sat"), abs=1e-5)
    left = embed(service, LONG, truncate_prompt_tokens=5, truncation_side="left")
    assert left == pytest.approx(embed(service, "red and blue"), abs=1e-5)
    assert embed(service, LONG, truncate_prompt_tokens=9999) == pytest.approx(embed(service, LONG), abs=1e-5)
    assert embed(service, LONG, truncate="end") == pytest.approx(embed(service, LONG), abs=1e-5)
    strict = start(service.model.checkpoint, auto_truncate=False)
    try:
        assert refused(strict, "/v1/embeddings", {"input": LONG})[0] == 422
        for cut in ({"truncate_prompt_tokens": -1}, {"truncation": True}, {"truncate": "END"}):
            assert embed(strict, LONG, **cut) == pytest.approx(embed(service, LONG), abs=1e-5)
    finally:
        strict.close()


def test_the_room_that_is_asked_for_is_that_of_the_texts_sent(prompted):
    """A pair has one special token more than a text, and two texts."""
    service = prompted["embedding"]
    assert embed(service, "the cat", truncate_prompt_tokens=3) == pytest.approx(embed(service, "the"), abs=1e-5)
    said = refused(service, "/v1/embeddings", {"input": "the cat", "truncate_prompt_tokens": 2})
    assert said == (422, "`truncate_prompt_tokens` 2 leaves no room for a text beside 2 tokens")
    pair = {"text_1": "the cat", "text_2": "a dog"}
    for most in (3, 4):
        said = refused(prompted["reranker"], "/score", {**pair, "truncate_prompt_tokens": most})
        assert said == (422, f"`truncate_prompt_tokens` {most} leaves no room for a pair beside 3 tokens")
    score = post(prompted["reranker"], "/score", {**pair, "truncate_prompt_tokens": 5})["data"][0]["score"]
    short = post(prompted["reranker"], "/score", {"text_1": "the", "text_2": "a"})["data"][0]["score"]
    assert score == pytest.approx(short, abs=1e-5)


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(prompted):
    service = prompted["embedding"]
    said = refused(service, "/embed", {"inputs": "the dog", "instruction": "a cat " * 4000})
    assert said[1].startswith("`instruction` leaves no room for a text in ")
    said = refused(service, "/embed", {"inputs": "a dog", "instruction": "a cat ", "truncate_prompt_tokens": 4})
    assert said == (422, "`truncate_prompt_tokens` 4 leaves no room for a text beside 4 tokens")


def test_without_special_tokens_a_text_is_its_own(prompted):
    body = {"inputs": ["the cat", [5, 7]], "add_special_tokens": False}
    rows = post(prompted["embedding"], "/embed_all", body)
    assert [len(row) for row in rows] == [2, 2]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["embedding", "multi_vector", "reranker"])
def test_documents_are_cut_and_queries_are_not(prompted, kind):
    def score(query: str, document: str, **more) -> float:
        return post(prompted[kind], "/score", {"text_1": query, "text_2": document, **more})["data"][0]["score"]

    query, document = "a big dog ran", "the cat sat on the mat"
    cut = score(query, document, max_tokens_per_doc=2)
    assert cut == pytest.approx(score(query, "the cat"), abs=1e-5)
    assert cut != pytest.approx(score(query, document), abs=1e-5)


def test_kinds_of_text_are_the_model_s_prompts(prompted):
    service = prompted["embedding"]
    query, passage = (embed(service, "the cat", prompt_name=name) for name in ("query", "passage"))
    for kind in ({"input_type": "search_query"}, {"input_type": "query"}, {"task": "retrieval.query"}):
        assert embed(service, "the cat", **kind) == pytest.approx(query, abs=1e-6)
    for kind in ({"input_type": "search_document"}, {"input_type": "document"}, {"task": "retrieval.passage"}):
        assert embed(service, "the cat", **kind) == pytest.approx(passage, abs=1e-6)


def test_a_symmetric_model_reads_every_kind_of_text_alike(prompted):
    """Of sentence-transformers 5 even those have two empty prompts."""
    for texts in ({}, {"query": "", "document": ""}):
        service = start(replace(prompted["embedding"].model.checkpoint, prompts=Prompts(texts)))
        try:
            plain_row = embed(service, "the cat")
            for kind in ("search_query", "passage", "classification", "text-matching"):
                assert embed(service, "the cat", input_type=kind) == pytest.approx(plain_row, abs=1e-6)
            status, message = refused(service, "/v1/embeddings", {"input": "a", "task": "serch"})
            assert (status, "`task` 'serch' has no prompt" in message) == (422, True)
        finally:
            service.close()


@pytest.fixture(scope="module")
def adapted(prompted):
    """A model with an adapter for each task, of which the one for passages is served."""
    prompts = Prompts({"retrieval.query": "the ", "retrieval.passage": "a "}, adapter="retrieval.passage")
    service = start(replace(prompted["embedding"].model.checkpoint, prompts=prompts))
    yield service
    service.close()


@pytest.mark.parametrize(("path", "body"), [(path, body) for kind, path, body in BODIES if kind == "embedding"])
@pytest.mark.parametrize("field", ["task", "input_type"])
def test_a_task_whose_adapter_is_not_served_is_refused(adapted, path, body, field):
    """Also by the routes that have no such field; of vLLM's `/pooling` a `task` is the kind of the model."""
    if path in {*WITHOUT_ANY, "/decode"}:
        return
    for kind in ("retrieval.query", "query", "text-matching", "strange"):
        status, message = refused(adapted, path, {**body, field: kind})
        assert (status, f"`{field}`" in message or f"{field}`" in message) == (422, True), message
    assert call(adapted, "/v1/embeddings", {"input": "a", field: "retrieval.passage"}).status == 200


def test_the_refusal_names_the_adapter_that_is_served(adapted):
    found = refused(adapted, "/v1/embeddings", {"input": "a", "task": "retrieval.query"})
    assert found == (
        422,
        "`task` 'retrieval.query' has an adapter of its own, and this server's is 'retrieval.passage' "
        "(BEI_TASK_ADAPTER); send what that one is for, or leave the field out",
    )


def test_the_adapter_that_is_served_is_for_all_names_of_its_task(adapted):
    passage = embed(adapted, "the cat", prompt_name="retrieval.passage")
    for kind in ({"input_type": "search_document"}, {"task": "passage"}, {"task": "retrieval.passage"}):
        assert embed(adapted, "the cat", **kind) == pytest.approx(passage, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncate": "END", "truncation_direction": "left"}, "`truncate` contradicts `truncation_direction`"),
        ({"truncate": False, "truncation": True}, "`truncation` contradicts `truncate`"),
        ({"truncate": False, "truncate_prompt_tokens": 9}, "`truncate_prompt_tokens` contradicts `truncate`"),
        ({"truncate_prompt_tokens": 2}, "`truncate_prompt_tokens` 2 leaves no room"),
        ({"truncate_prompt_tokens": 0}, "`truncate_prompt_tokens` 0 leaves no room"),
        ({"truncate_prompt_tokens": -2}, "`truncate_prompt_tokens` should be greater than or equal to -1"),
        ({"truncate": "middle"}, "`truncate` must be true, false, NONE, START or END"),
        ({"normalize": True, "use_activation": False}, "`use_activation` contradicts `normalize`"),
        ({"embd_normalize": -1, "normalized": True}, "`embd_normalize` contradicts `normalized`"),
        ({"dimensions": 8, "output_dimension": 9}, "`output_dimension` contradicts `dimensions`"),
        ({"input_type": "query", "prompt_name": "query"}, "`input_type` cannot be set with `prompt_name`"),
        ({"input_type": "classification"}, "`input_type` 'classification' has no prompt; there are passage, query"),
        ({"embedding_type": ["float", "base64"]}, "`embedding_type` should be 'float', 'int8', 'uint8', 'binary'"),
        ({"late_chunking_params": {"chunk_size": 2}}, "`late_chunking_params` {'chunk_size': 2} is not possible here"),
    ],
)
def test_what_cannot_be_is_refused_by_name(prompted, fields, message):
    found = refused(prompted["embedding"], "/v1/embeddings", {"input": "the cat", **fields})
    assert (found[0], found[1][: len(message)]) == (422, message)


def test_two_names_of_one_field_are_refused(prompted):
    found = refused(prompted["reranker"], "/v2/rerank", {**DOCUMENTS, "top_n": 1, "top_k": 2})
    assert found == (422, "`top_k` and `top_n` mean the same; send one of them")
    found = refused(prompted["reranker"], "/score", {**SCORE, "queries": "a"})
    assert found == (422, "`queries` and `text_1` mean the same; send one of them")


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_images_beside_texts_are_refused(prompted, path):
    body = {"texts": TEXTS, "inputs": [{"content": [{"type": "text", "text": "a"}]}]}
    assert refused(prompted["embedding"], path, body) == (422, "`inputs` should be null")


def test_the_best_in_the_order_of_the_texts(prompted):
    ranks = post(prompted["reranker"], "/rerank", RERANK)
    best = sorted(sorted(ranks, key=lambda rank: -rank["score"])[:2], key=lambda rank: rank["index"])
    assert near(post(prompted["reranker"], "/rerank", {**RERANK, "top_n": 2}), best)


def test_nested_parameters_are_held_to_the_same(prompted):
    body = {"inputs": "the cat", "parameters": {"stride": 3}}
    found = refused(prompted["entities"], "/predict_tokens", body)
    assert found == (422, "`stride` 3 is not possible here; leave it out")
