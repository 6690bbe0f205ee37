"""Language models that rerank, end to end against transformers, with the prompts of their model cards."""

import asyncio
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForSequenceClassification

from bei.checkpoint.load import read
from bei.checkpoint.rerank_file import read_template
from bei.checkpoint.reranking import TEMPLATES
from bei.engines.base import EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.torch.engine import TorchEngine
from bei.errors import Invalid, SetupError
from bei.serving.answers import Options
from bei.settings import Settings
from tests.support.calls import post, refused
from tests.support.configs import tiny_config
from tests.support.language_models import byte_level, language_model, save_language_model
from tests.support.tiny_models import write_json, write_modules

QUERY = "where do cats sit?"
TEXTS = ["A cat sat on the mat.", "Dogs run; {braces} & more", "", "cat " * 30]
WORDS = ["yes", "no", "Yes"]


def qwen3(query: str, text: str, instruction: str | None) -> list[str]:
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    return [
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {text}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ]


def mxbai(query: str, text: str, instruction: str | None) -> list[str]:
    asked = f"query: {query}" if instruction is None else f"instruction: {instruction}\nquery: {query}"
    return [
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        *(asked, "\n", f"document: {text}", "\n"),
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]


def bge_gemma(query: str, text: str, instruction: str | None) -> list[str]:
    task = instruction or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'."
    )
    return ["<bos>", f"A: {query}", "\n", f"B: {text}", "\n", task]


CASES = {"qwen3": (qwen3, "yes", "no"), "qwen2": (mxbai, "1", "0"), "gemma": (bge_gemma, "Yes", None)}


def expected(model, family: str, instruction: str | None = None) -> np.ndarray:
    """The score of each prompt alone: from all logits of the vocabulary, those of the two words."""
    tokenizer, (pieces, yes, no) = byte_level(), CASES[family]
    scores = []
    for text in TEXTS:
        parts = pieces(QUERY, text, instruction)
        ids = [id for piece in parts for id in tokenizer.encode(piece, add_special_tokens=False).ids]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        scores.append(logits[tokenizer.token_to_id(yes)] - (logits[tokenizer.token_to_id(no)] if no else 0))
    return np.array(scores)


def rerank(service, **options) -> np.ndarray:
    return asyncio.run(service.model.rerank(QUERY, TEXTS, scoring="identity", options=Options(**options))).rows


@pytest.fixture
def start(start_service, tmp_path):
    def start(model, name="org/tiny-rerank", template=None, **config):
        checkpoint = read(save_language_model(tmp_path, model, **config), name, rerank_template=template)
        return start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32", threads=1)), checkpoint)

    return start


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("instruction", [None, "Find rhymes."])
def test_scores_are_those_of_the_reference(start, family, tied, instruction):
    model = language_model(family, tie_word_embeddings=tied)
    service = start(model)
    assert (service.model.checkpoint.task, service.model.route) == ("reranker", "/rerank")
    scores = rerank(service, instruction=instruction)
    reference = expected(model, family, instruction)
    assert np.abs(scores - reference).max() <= 2e-5 * max(1, np.abs(reference).max())
    probabilities = asyncio.run(service.model.rerank(QUERY, TEXTS, options=Options(instruction=instruction))).rows
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-reference)), atol=1e-4)


def test_the_converted_form_scores_the_same(start, tmp_path):
    model = language_model("qwen3")
    ids = [byte_level().token_to_id(word) for word in ("yes", "no")]
    converted = AutoModelForSequenceClassification.from_config(model.config, attn_implementation="eager").eval()
    converted.config.id2label = {0: "yes"}
    converted.model.load_state_dict(model.model.state_dict())
    converted.score = torch.nn.Linear(48, 1, bias=False)
    converted.score.weight.data = (model.lm_head.weight[ids[0]] - model.lm_head.weight[ids[1]])[None].detach()
    scores, reference = rerank(start(converted)), expected(model, "qwen3")
    assert np.abs(scores - reference).max() <= 2e-5 * max(1, np.abs(reference).max())


def test_the_document_is_cut_and_the_question_is_not(start):
    model = language_model("qwen3")
    service = start(model, model_max_length=400)
    tokenizer = service.model.texts.tokenizer
    (whole, cut) = tokenizer.encode([(QUERY, "cat"), (QUERY, "cat " * 300)], truncate=True)
    assert len(cut.ids) == 400
    np.testing.assert_array_equal(cut.ids[-20:], whole.ids[-20:])
    (limited,) = tokenizer.encode([(QUERY, "cat " * 300)], truncate=True, max_second_tokens=3)
    np.testing.assert_array_equal(limited.ids, whole.ids)
    assert [of.is_truncated for of in (whole, cut, limited)] == [False, True, True]
    with pytest.raises(Invalid, match="must have at most 400 tokens"):
        tokenizer.encode([(QUERY, "cat " * 300)], truncate=False)


LONG = "cat " * 300


@pytest.mark.parametrize("family", CASES)
def test_neither_text_of_a_pair_is_cut_away(start, family):
    service = start(language_model(family), model_max_length=600)
    refusals = [
        ("/rerank", {"query": LONG, "texts": ["a dog"]}, "`query` leaves no room for a document"),
        ("/rerank", {"query": "a", "texts": ["a", LONG], "truncation_direction": "left"}, "`texts` leaves no room for"),
        ("/v1/rerank", {"query": LONG, "documents": ["a dog"]}, "`query` leaves no room for a document"),
        ("/score", {"queries": LONG, "documents": "a dog"}, "`queries` leaves no room for a document"),
        ("/predict", {"inputs": [["a", "a dog"], [LONG, "a dog"]]}, "`inputs` leaves no room for a document"),
        ("/rerank", {"query": "a", "texts": ["a"], "instruction": LONG}, "`instruction` leaves no room for a"),
        (
            "/rerank",
            {"query": "a", "texts": ["a"], "truncate_prompt_tokens": 9},
            "`truncate_prompt_tokens` 9 leaves no",
        ),
    ]
    for path, body, message in refusals:
        status, said = refused(service, path, body)
        assert (status, said[: len(message)]) == (422, message)
    for query, text in (("a", LONG), ("cat " * 9, LONG)):
        assert len(post(service, "/rerank", {"query": query, "texts": [text]})) == 1


def test_a_name_or_a_setting_makes_a_reranker(tmp_path):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    assert read(folder, "org/tiny").task == "embedding"
    assert read(folder, "org/Tiny-Reranker").task == "reranker"
    assert read(folder, "org/Tiny-Reranker", rerank_template="none").task == "embedding"
    assert read(folder, "org/tiny", rerank_template="mxbai").pair_template.yes == "1"


def test_markers_that_the_tokenizer_lacks_are_named(tmp_path, caplog):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    read(folder, "org/tiny", rerank_template="qwen3")
    assert "no token" not in caplog.text
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] != "<|im_end|>"]
    write_json(folder / "tokenizer.json", written)
    read(folder, "org/tiny", rerank_template="qwen3")
    assert "template's <|im_end|>: no token of this tokenizer" in caplog.text


def test_the_words_that_a_logit_score_names(tmp_path, start_service):
    """sentence-transformers' CrossEncoder of a language model; its template is in its tokenizer, and is not read."""
    model = language_model("qwen3")
    folder = save_language_model(tmp_path, model)
    write_modules(folder, {"Transformer": "", "LogitScore": "1_LogitScore"})
    yes, no = (byte_level().token_to_id(word) for word in ("yes", "no"))
    write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": no, "false_token_id": yes})
    with pytest.raises(SetupError, match="LogitScore needs the template"):
        read(folder, "org/tiny")
    checkpoint = read(folder, "org/tiny", rerank_template="qwen3")
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32", threads=1)), checkpoint)
    reference = -expected(model, "qwen3")
    assert np.abs(rerank(service) - reference).max() <= 2e-5 * max(1, np.abs(reference).max())


def zerank_scores(model, texts: list[str]) -> np.ndarray:
    """zerank-1-small: the logit of `Yes`, divided by 5, after a chat with the query as the system."""
    tokenizer = byte_level()
    yes, scores = tokenizer.token_to_id("Yes"), []
    for text in texts:
        parts = [
            "<|im_start|>system\n",
            f"{QUERY}<|im_end|>\n<|im_start|>user\n{text.strip()}",
            "<|im_end|>\n<|im_start|>assistant\n",
        ]
        ids = [id for piece in parts for id in tokenizer.encode(piece, add_special_tokens=False).ids]
        with torch.no_grad():
            scores.append(float(model(torch.tensor([ids])).logits[0, -1, yes]) / 5)
    return np.array(scores)


def test_zerank_is_known_by_its_name(start):
    model = language_model("qwen3")
    service = start(model, "zeroentropy/zerank-1-small")
    texts = [*TEXTS, "  A cat sat.\n"]
    reference = zerank_scores(model, texts)
    ours = asyncio.run(service.model.rerank(QUERY + " ", texts, scoring="identity")).rows
    assert np.abs(ours - reference).max() <= 2e-5 * max(1, np.abs(reference).max())
    raw = asyncio.run(service.model.rerank(QUERY, texts)).rows
    np.testing.assert_allclose(raw, 1 / (1 + np.exp(-reference)), atol=1e-4)


@pytest.mark.parametrize("name", ["ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b"])
def test_a_reranker_of_another_template_than_its_kind_s_is_refused(tmp_path, name):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    with pytest.raises(SetupError, match="its template is not known here"):
        read(folder, name)
    assert read(folder, name, rerank_template="qwen3").task == "reranker"


def test_only_the_repository_s_own_name_counts(tmp_path):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    assert read(folder, "rerankers/tiny").task == "embedding"
    assert read(folder, "zerank/tiny").task == "embedding"


# -- a template of the user's own ------------------------------------------------------------------------------------

OWN = {
    "prefix": "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    "body": "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    "suffix": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "instruction": "Given a web search query, retrieve relevant passages that answer the query",
    **{"yes": "yes", "no": "no"},
}


def own_file(tmp_path, content):
    file = tmp_path / "template.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_template_of_the_user_s_own(start, tmp_path):
    model = language_model("qwen3")
    service = start(model, "org/tiny", own_file(tmp_path, OWN))
    assert service.model.checkpoint.pair_template == TEMPLATES["qwen3"]
    reference = expected(model, "qwen3", "Find rhymes.")
    scores = rerank(service, instruction="Find rhymes.")
    assert np.abs(scores - reference).max() <= 2e-5 * max(1, np.abs(reference).max())


def test_pieces_and_braces_of_a_template_of_the_user_s_own(tmp_path):
    parts = {"body": ["{{A}}: {query}", "\n", "B: {document}"], "suffix": ["\n", "{instruction}"], "yes": "Yes"}
    template = read_template(own_file(tmp_path, {**parts, "instruction": "Find {rhymes}."}))
    assert template.pieces("q{0}", "d", None) == ((), ("{A}: q{0}", "\n", "B: d"), ("\n", "Find {rhymes}."))


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        (" " * 70_000, "must hold a JSON object"),
        ({**OWN, "words": "yes"}, "key 'words' is unknown; keys are prefix, body"),
        ({**OWN, "body": 3}, "`body` must be a text, or a list of texts"),
        ({**OWN, "body": "{query} {document"}, "`body`: expected '}'"),
        ({**OWN, "body": "{query.__class__} {document}"}, "`body` has the place 'query.__class__'"),
        ({**OWN, "body": "{query!r} {document}"}, "`body` has the place 'query'"),
        ({**OWN, "body": "{query:>9} {document}"}, "`body` has the place 'query'"),
        ({**OWN, "body": "{} {document}"}, "`body` has the place ''"),
        ({**OWN, "prefix": "{query}"}, "`prefix` has the place 'query'; it may have none"),
        ({**OWN, "body": "{document}"}, "`body` must have the place {query}, and end with {document}"),
        ({**OWN, "body": "{query} {document}."}, "end with {document}"),
        ({**OWN, "instruction": None}, "`instruction` is missing"),
        ({**OWN, "yes": None}, "`no` needs `yes`"),
        ({**OWN, "yes": ""}, "`yes` must be a text that is not empty"),
    ],
    ids=str,
)
def test_a_malformed_template_is_refused_by_name(tmp_path, content, refusal):
    file = own_file(tmp_path, content)
    with pytest.raises(SetupError, match=re.escape(refusal)) as caught:
        read_template(file)
    assert str(file) in str(caught.value)


def test_a_name_that_is_neither_a_template_nor_a_file():
    settings = Settings.load(tiny_config(), environ={}, rerank_template="qwen4")
    with pytest.raises(SetupError, match="'qwen4' is no file, and none of qwen3, mxbai"):
        read_template(settings.rerank_template)
    assert Settings.load(tiny_config(), environ={}, rerank_template="qwen3").rerank_template == "qwen3"


def test_a_vocabulary_without_the_words_is_refused(tmp_path):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(SetupError, match=r"no token 'yes'.*BEI_RERANK_TEMPLATE"):
        read(folder, "org/rerank")


def test_every_route_takes_an_instruction(start):
    model = language_model("qwen3")
    service, instruction = start(model), {"instruction": "Find rhymes."}
    reference = expected(model, "qwen3", "Find rhymes.")
    raw = {**instruction, "raw_scores": True}
    tei = post(service, "/rerank", {"query": QUERY, "texts": TEXTS, **raw})
    cohere = post(service, "/v1/rerank", {"query": QUERY, "documents": TEXTS, **raw})["results"]
    pairs = post(service, "/predict", {"inputs": [[QUERY, text] for text in TEXTS], **raw})
    vllm = post(service, "/score", {"text_1": QUERY, "text_2": TEXTS, **instruction, "use_activation": False})["data"]
    for scores in (
        [row["score"] for row in tei],
        [row["relevance_score"] for row in sorted(cohere, key=lambda row: row["index"])],
        [row["score"] for (row,) in pairs],
        [row["score"] for row in vllm],
    ):
        np.testing.assert_allclose(scores, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CASES)
def test_the_checkpoint_s_own_prompt_is_the_instruction(start, tmp_path, family):
    """sentence-transformers passes it to the chat template as the system's message."""
    prompts = {"prompts": {"query": "Find rhymes."}, "default_prompt_name": "query"}
    write_json(tmp_path / "config_sentence_transformers.json", prompts)
    model = language_model(family)
    service = start(model)
    np.testing.assert_allclose(rerank(service), expected(model, family, "Find rhymes."), rtol=1e-4, atol=1e-4)
    asked = rerank(service, instruction="Find odes.")
    np.testing.assert_allclose(asked, expected(model, family, "Find odes."), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompts", [{}, {"prompts": {"query": "Find rhymes."}, "default_prompt_name": "query"}])
def test_a_prompt_that_the_client_rendered_is_read_as_it_is(start, tmp_path, prompts):
    write_json(tmp_path / "config_sentence_transformers.json", prompts)
    model = language_model("qwen3")
    prompt = "".join(qwen3(QUERY, TEXTS[0], None))
    (row,) = post(start(model), "/predict", {"inputs": prompt, "raw_scores": True})
    ids = byte_level().encode(prompt, add_special_tokens=False).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    yes, no = (byte_level().token_to_id(word) for word in ("yes", "no"))
    assert row["label"] == "yes"
    assert row["score"] == pytest.approx(float(logits[yes] - logits[no]), rel=1e-4)


def test_an_instruction_needs_a_template(start, start_service):
    service = start_service()
    with pytest.raises(Invalid, match="cannot be set with `prompt_name`"):
        asyncio.run(service.model.embed(["a"], options=Options(prompt_name="query", instruction="b")))
    with pytest.raises(Invalid, match="is for pairs"):
        asyncio.run(start(language_model("qwen3")).model.classify(["a"], options=Options(instruction="b")))


def test_a_request_computes_its_prompt_once(start_service, tmp_path, native_cache):
    model = language_model("qwen3")
    checkpoint = read(save_language_model(tmp_path, model), "org/tiny-rerank")
    engine = NativeEngine(checkpoint, EngineOptions(precision="fp32", threads=1, cache_dir=native_cache))
    engine.facts = replace(engine.facts, token_budget=100)
    batches = []
    run = engine.run
    engine.run = lambda batch: batches.append(len(batch)) or run(batch)
    service = start_service(engine, checkpoint)
    scores, reference = rerank(service), expected(model, "qwen3")
    assert max(batches) > 1  # of some 400 tokens each
    assert np.abs(scores - reference).max() <= 2e-5 * max(1, np.abs(reference).max())
