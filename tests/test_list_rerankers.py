"""Models that rank a list, end to end against the published code over transformers' Qwen3Model."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.torch.engine import TorchEngine
from bei.errors import Invalid, SetupError
from bei.inprocess import Model
from bei.serving.answers import Options
from bei.tasks import lists
from tests.support.calls import call, post, refused
from tests.support.list_models import DOCUMENT, QUERY, Published, cosine, save_list_ranker, tokenizer
from tests.support.tiny_models import write_json

ASKED = "where do cats sit?"
TEXTS = ["A cat sat on the mat.", "Dogs run; {braces} & more", "", "cat " * 30, "\n  Katzen \u00fc sitzen <b>", "a"]
SMALL = {"query_tokens": 12, "document_tokens": 40, "documents": 3}
ENGINES = {"torch": TorchEngine, "native": NativeEngine}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def of(seed):
        if seed not in made:
            made[seed] = save_list_ranker(tmp_path_factory.mktemp("ranker"), seed)
        return made[seed]

    return of


@pytest.fixture
def start(folders, start_service, native_cache):
    """start(seed, engine, limits of the template, **settings): a service of it."""

    def start(seed=0, engine="torch", limits=None, precision="fp32", max_tokens=16384, **settings):
        checkpoint = read(folders(seed), "org/tiny", max_num_tokens=max_tokens)
        if limits:
            checkpoint = replace(checkpoint, list_template=replace(checkpoint.list_template, **limits))
        options = EngineOptions(precision=precision, threads=1, cache_dir=native_cache)
        return start_service(ENGINES[engine](checkpoint, options), checkpoint, **settings)

    return start


def rerank(service, query=ASKED, texts=TEXTS, **options):
    return asyncio.run(service.model.rerank(query, texts, options=Options(**options)))


def near(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs).max() <= 2e-5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
def test_scores_are_those_of_the_published_code(start, folders, engine, seed):
    service, published = start(seed, engine), Published(folders(seed))
    assert (service.model.checkpoint.task, service.model.route) == ("list_reranker", "/rerank")
    found = rerank(service)
    near(found.rows, published.rerank(ASKED, TEXTS))
    assert found.order.tolist() == np.argsort(-found.rows, kind="stable").tolist()
    shuffled = [TEXTS[i] for i in (4, 2, 0, 5, 1, 3)]
    near(rerank(service, texts=shuffled).rows, published.rerank(ASKED, shuffled))
    near(rerank(service, texts=TEXTS[:1]).rows, published.rerank(ASKED, TEXTS[:1]))
    near(rerank(service, instruction="Find rhymes.").rows, published.rerank(ASKED, TEXTS, "Find rhymes."))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
def test_scores_of_several_blocks_are_those_of_the_published_code(start, folders, engine, seed):
    service, published = start(seed, engine, SMALL), Published(folders(seed), **SMALL)
    texts = [*TEXTS, *(f"{text} {i}" for i, text in enumerate(TEXTS))]
    assert len(published.blocks(ASKED, texts)[1]) == 4
    near(rerank(service, texts=texts).rows, published.rerank(ASKED, texts))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_ends_where_a_long_document_might_not_fit(start, folders, engine):
    """The published code does not count the words around documents; here a prompt that is too long is halved."""
    limits = {"query_tokens": 20, "document_tokens": 400, "documents": 125}
    service, published = start(0, engine, limits, max_tokens=1800), Published(folders(0), **limits, max_length=1800)
    texts = [letter * 350 for letter in "abcdefg"]
    lengths = [len(block) for block in published.blocks(ASKED, texts)[1]]
    assert lengths == [4, 3]
    encodings = service.model.texts.tokenizer.lists(ASKED, texts, truncate=True).encodings
    assert [len(of.marked) - 1 for of in encodings] == [2, 2, 3]
    assert max(len(of.ids) for of in encodings) <= 1800
    wide = start(0, engine, limits, max_tokens=4000)
    near(rerank(wide, texts=texts).rows, Published(folders(0), **limits, max_length=4000).rerank(ASKED, texts))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_in_bf16(start, folders, engine, seed):
    service = start(seed, engine, precision="bf16")
    prompts = [
        service.model.texts.tokenizer.lists(ASKED, texts, truncate=True).encodings[0] for texts in (TEXTS, TEXTS[2:])
    ]
    batch = Batch.pack([of.ids for of in prompts], row_kind="tokens", marked=[of.marked for of in prompts])
    expected = np.concatenate([Published(folders(seed)).rows(ASKED, texts) for texts in (TEXTS, TEXTS[2:])])
    found = service.model.engine.run(batch)
    assert min(map(cosine, found, expected)) >= 0.9995


def test_prompts_are_read_as_the_published_ones_whole(start, folders):
    reader, published = start().model.texts.tokenizer, Published(folders(0))
    for texts in (TEXTS, ["\n\n a", "1", " \n", "\u00e9\u0301 <|im_end|> x"]):
        (encoding,) = reader.lists(ASKED, texts, truncate=True, instruction="Find rhymes.").encodings
        prompt = published.prompt(ASKED, texts, "Find rhymes.")
        assert encoding.ids.tolist() == tokenizer().encode(prompt).ids
        marks = [published.id(DOCUMENT)] * len(texts) + [published.id(QUERY)]
        assert encoding.ids[encoding.marked].tolist() == marks


def test_marks_of_users_are_no_marks(start, folders):
    service, published = start(), Published(folders(0))
    query, texts = f"where {DOCUMENT}do cats{QUERY} sit?", [f"A cat{QUERY} sat", f"{DOCUMENT}", "a dog"]
    near(rerank(service, query, texts).rows, published.rerank(query, texts))
    nested = "<|rerank_<|embed_token|>token|> <|embed_<|embed_token|>token|>"
    (encoding,) = service.model.texts.tokenizer.lists(nested, [nested, "a"], truncate=True).encodings
    marks = np.isin(encoding.ids, [published.id(DOCUMENT), published.id(QUERY)])
    np.testing.assert_array_equal(np.flatnonzero(marks), encoding.marked)
    assert len(rerank(service, nested, [nested, "a"], instruction=nested).rows) == 2


def test_long_texts_are_cut_as_by_the_published_code(start, folders):
    service, published = start(limits=SMALL), Published(folders(0), **SMALL)
    query, texts = "where do all the cats sit?", ["A cat sat on the mat, and the dog ran far away.", "\u00fc" * 40, "a"]
    found = rerank(service, query, texts)
    near(found.rows, published.rerank(query, texts))
    assert found.usage.truncated_texts == 3, "of all pairs the query was cut"
    assert rerank(service, "cats", texts).usage.truncated_texts == 2
    from_the_left = rerank(service, "cats", texts, truncation_direction="left")
    near(from_the_left.rows, published.rerank("cats", [texts[0][-40:], "\u00fc" * 20, "a"]))


def test_a_request_s_limit_of_documents(start, folders):
    service = start(limits=SMALL)
    published = Published(folders(0), **SMALL | {"document_tokens": 10})
    texts = ["A cat sat on the mat.", "a dog"]
    asked = {"max_document_tokens": 10, "truncate": False}
    near(rerank(service, "cats", texts, **asked).rows, published.rerank("cats", texts))
    body = {"query": "cats", "documents": texts, "max_tokens_per_doc": 10}
    assert call(service, "/v2/rerank", body).headers["x-truncated-texts"] == "1"


def test_nothing_is_cut_where_the_request_says_so(start):
    service = start(limits=SMALL)
    long = "A cat sat on the mat, and the dog ran far away."
    for path, body, message in (
        ("/rerank", {"query": "a", "texts": ["a", long]}, "`texts` must have at most 40 tokens. Given: 47"),
        ("/v1/rerank", {"query": long, "documents": ["a"]}, "`query` must have at most 12 tokens. Given: 47"),
    ):
        status, said = refused(service, path, body | {"truncate": False})
        assert (status, said[: len(message)]) == (422, message)


def test_no_room(start):
    service = start(max_tokens=900)
    long, query = "cat " * 400, "where " * 80
    refusals = [
        ({"query": query, "texts": ["a"], "truncate": False}, "`texts` must have at most 900 tokens. Given: 1"),
        ({"query": query, "texts": ["a", "b"]}, "`query` leaves no room for a document in 900 tokens"),
        ({"query": "a", "texts": ["a"], "instruction": long}, "`instruction` leaves no room for a document in 900"),
        ({"query": "a", "texts": ["a"], "truncate_prompt_tokens": 9}, "`truncate_prompt_tokens` 9 leaves no room for"),
    ]
    for body, message in refusals:
        status, said = refused(service, "/rerank", body)
        assert (status, said[: len(message)]) == (422, message)
    cut = rerank(service, "a", [long])
    assert (cut.usage.tokens, cut.usage.truncated_texts) == (900, 1)


def test_every_route_of_rerankers(start, folders):
    service, expected = start(), Published(folders(0)).rerank(ASKED, TEXTS)
    best = np.argsort(-expected)
    for raw in ({}, {"raw_scores": True}, {"raw_scores": False}):
        ranks = post(service, "/rerank", {"query": ASKED, "texts": TEXTS, **raw})
        near([rank["score"] for rank in ranks], expected)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = {"query": ASKED, "documents": TEXTS, "top_n": 2, "return_documents": True}
        results = post(service, path, body)["results"]
        assert [one["index"] for one in results] == best[:2].tolist()
        near([one["relevance_score"] for one in results], expected[best[:2]])
        texts = [{"text": TEXTS[i]} for i in best[:2]]
        assert [one.get("document") for one in results] == ([None, None] if path == "/rerank" else texts)
    passages = {"query": {"text": ASKED}, "passages": [{"text": text} for text in TEXTS]}
    near([one["logit"] for one in post(service, "/v1/ranking", passages)["rankings"]], expected[best])
    asked = post(service, "/rerank", {"query": ASKED, "texts": TEXTS, "instruction": "Find rhymes."})
    near([rank["score"] for rank in asked], Published(folders(0)).rerank(ASKED, TEXTS, "Find rhymes."))


def test_no_other_task_is_answered(start):
    service = start()
    for path, body in (
        ("/embed", {"inputs": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/embed_all", {"inputs": "a"}),
        ("/score", {"text_1": "a", "text_2": ["b"]}),
        ("/predict", {"inputs": [["a", "b"]]}),
    ):
        status, said = refused(service, path, body)
        assert (status, "its task is list_reranker: POST /rerank" in said) == (424, True)
    assert refused(service, "/rerank", {"query": "", "texts": ["a", ""]})[0] == 400
    assert refused(service, "/rerank", {"query": "a", "texts": []})[0] == 400
    named = {"query": "a", "texts": ["b"], "prompt_name": "query"}
    assert refused(service, "/rerank", named)[1].startswith("`prompt_name` cannot be set with dual inputs")


def test_a_model_in_a_process_ranks_a_list_whole(folders):
    """However long: lists of texts are otherwise sent in parts."""
    texts = [f"{text} {i}" for i in range(60) for text in TEXTS]
    with Model(str(folders(0)), precision="fp32", engine="torch") as model:
        published = Published(folders(0), max_length=model.max_tokens)
        near(model.rerank(ASKED, texts), published.rerank(ASKED, texts))
        assert model.rerank(ASKED, []).shape == (0,)


def test_windows_are_those_of_the_later_model(tmp_path, folders):
    windowed = save_list_ranker(
        tmp_path, use_sliding_window=True, sliding_window=1024, layer_types=["sliding_attention"] * 3
    )
    for folder, limits in ((windowed, (1024, 8192)), (folders(0), (512, 2048))):
        template = read(folder, "m").list_template
        assert (template.query_tokens, template.document_tokens) == limits


def test_a_name_and_settings_change_nothing(folders, caplog):
    assert read(folders(0), "jinaai/jina-reranker-v3").task == "list_reranker"
    assert "pairs are scored by the template" not in caplog.text
    read(folders(0), "m", pooling="mean", rerank_template="qwen3")
    assert "BEI_POOLING has no effect" in caplog.text
    assert "BEI_RERANK_TEMPLATE has no effect" in caplog.text


def test_a_tokenizer_without_the_marks_is_refused(tmp_path, start_service):
    folder = save_list_ranker(tmp_path)
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] != QUERY]
    write_json(folder / "tokenizer.json", written)
    with pytest.raises(SetupError, match=r"no special token '<\|rerank_token\|>'"):
        start_service(checkpoint=read(folder, "m"))


def test_a_family_without_this_head_is_refused(tmp_path):
    folder = save_list_ranker(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"model_type": "qwen2", "is_causal": True})
    with pytest.raises(SetupError, match="JinaForRanking: 'qwen2' is not supported with this head"):
        read(folder, "m")
    write_json(folder / "config.json", config | {"is_causal": False})
    with pytest.raises(SetupError, match="a bidirectional model that ranks lists is not supported"):
        read(folder, "m")


def test_scores_by_hand():
    one = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(lists.scores([one]), [1, 0], atol=1e-6)
    two = np.array([[-1, 0], [0, 2]], np.float32)  # its only document is across: half the weight
    mean = np.array([1 * 1 + 0.5 * 0, 0.5 * 2]) / 1.5
    expected = [cosine(mean, row) for row in (one[0], one[1], two[0])]
    np.testing.assert_allclose(lists.scores([one, two]), expected, atol=1e-6)
    opposite = np.array([[-1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(lists.scores([opposite]), [-1], atol=1e-6)


def test_options_that_lists_have_not_are_errors(start):
    with pytest.raises(Invalid, match="`prompt_name` cannot be set"):
        rerank(start(), prompt_name="query")
