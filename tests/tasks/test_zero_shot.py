"""Zero-shot classification against transformers' pipeline, on one tiny model of inference."""

import json
import tracemalloc

import numpy as np
import pytest
from huggingface_hub import ZeroShotClassificationOutputElement
from transformers import PreTrainedTokenizerFast, pipeline

from bei.checkpoint.load import read
from bei.tasks.scores import entailments
from tests.support.calls import call, near, post
from tests.support.task_models import start
from tests.support.tiny_models import random_model, save, write_json

TEXTS = ["the cat sat on the mat", "it ran under a big old tree, then it sat!", "the " * 100]
CANDIDATES = ["cat", "big dog", "tree"]
ORDERS = [
    ["contradiction", "neutral", "entailment"],
    ["ENTAILMENT", "neutral", "contradiction"],
    ["not_entailment", "entailment"],
]


def nli(folder, names):
    model = random_model("bert", 7, "ForSequenceClassification", id2label=dict(enumerate(names)))
    save(folder, model, pooling=None)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"id2label": {str(i): name for i, name in enumerate(names)}})
    return model, read(folder, "tiny")


@pytest.fixture(scope="module", params=range(len(ORDERS)), ids=["last", "first", "of two"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nli")
    model, checkpoint = nli(folder, ORDERS[request.param])
    model.config.label2id = {name: i for i, name in enumerate(ORDERS[request.param])}
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    service = start(checkpoint)
    yield pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, device="cpu"), service
    service.close()


@pytest.mark.parametrize("candidates", [CANDIDATES, ["cat"], "cat, big dog ,tree"], ids=["three", "one", "in a text"])
@pytest.mark.parametrize(
    "fields", [{}, {"multi_label": True}, {"hypothesis_template": "it was {} then"}, {"multi_label": False}], ids=str
)
def test_the_numbers_of_the_pipeline(both, candidates, fields):
    reference, service = both
    for text, expected in zip(TEXTS, reference(TEXTS, candidates, **fields), strict=True):
        answer = post(service, "/predict", {"inputs": text, "candidate_labels": candidates, **fields})
        assert [of["label"] for of in answer] == expected["labels"]
        np.testing.assert_allclose([of["score"] for of in answer], expected["scores"], atol=2e-5)
        for path in ("/predict", "/"):
            inside = {"inputs": text, "parameters": {"candidate_labels": candidates, **fields}}
            assert near(post(service, path, inside), answer)
    many = post(service, "/predict", {"inputs": [[text] for text in TEXTS], "candidate_labels": candidates, **fields})
    alone = post(service, "/predict", {"inputs": TEXTS[0], "candidate_labels": candidates, **fields})
    assert near(many[0], alone)


def test_what_the_hub_s_client_reads(both):
    body = {"inputs": TEXTS[0], "parameters": {"candidate_labels": CANDIDATES, "multi_label": None}}
    parsed = ZeroShotClassificationOutputElement.parse_obj_as_list(call(both[1], "/predict", body).body)
    assert {of.label for of in parsed} == set(CANDIDATES)
    assert len(post(both[1], "/predict", body | {"parameters": {**body["parameters"], "top_k": 2}})) == 2


NAMED = {"candidate_labels": CANDIDATES}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": ["a", " "]}, "candidate_labels"),
        ({"candidate_labels": [1]}, "candidate_labels"),
        ({"candidate_labels": ","}, "candidate_labels"),
        ({"multi_label": True}, "multi_label"),
        ({"hypothesis_template": "it is {}"}, "hypothesis_template"),
        ({**NAMED, "hypothesis_template": "it is"}, "hypothesis_template"),
        ({**NAMED, "hypothesis_template": "{0.__class__} {}"}, "hypothesis_template"),
        ({**NAMED, "hypothesis_template": "{} {}"}, "hypothesis_template"),
        ({**NAMED, "hypothesis_template": "{}" + "a" * 20_000}, "hypothesis_template"),
        ({**NAMED, "raw_scores": True}, "raw_scores"),
        ({**NAMED, "parameters": {"function_to_apply": "none"}}, "parameters.function_to_apply"),
        ({**NAMED, "parameters": {"candidate_labels": ["mat"]}}, "parameters.candidate_labels"),
        ({**NAMED, "inputs": [["a", "b"]]}, "candidate_labels"),
        ({**NAMED, "inputs": ""}, "inputs"),
        ({**NAMED, "truncate": False, "inputs": TEXTS[2]}, "inputs"),
    ],
    ids=str,
)
def test_refusals_name_the_field(both, fields, field):
    reply = call(both[1], "/predict", {"inputs": TEXTS[0], **fields})
    assert reply.status in (400, 422)
    assert f"`{field}`" in json.loads(reply.body)["error"]


def test_pairs_are_counted_before_they_are_made(both):
    texts = [["the cat"]] * 1000
    reply = call(both[1], "/predict", {"inputs": texts, "candidate_labels": ["a", "b", "c"]})
    assert reply.status == 413
    assert "batch size 3000 > maximum allowed batch size 2048" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("unit", ["a,", ","])
def test_labels_in_a_text_are_counted_before_they_are_made(both, unit):
    """Millions in one string of JSON held the interpreter for half a second, and took 600 MB."""
    body = json.dumps({"inputs": "the cat", "candidate_labels": unit * 3_000_000}).encode()
    tracemalloc.start()
    reply = call(both[1], "/predict", body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reply.status, json.loads(reply.body)["error"]) == (422, "`candidate_labels` must be at most 65536 labels")
    assert peak < 4 * len(body) + 10_000_000


def test_a_classifier_of_something_else(tmp_path):
    service = start(nli(tmp_path, ["bad", "good"])[1])
    reply = call(service, "/predict", {"inputs": "the cat", **NAMED})
    service.close()
    assert reply.status == 422
    assert "a model with a label `entailment`; this model's are 'bad, good'" in json.loads(reply.body)["error"]


def test_candidates_far_apart_are_ordered_by_logits():
    logits = np.array([[[0.0, 200.0], [0.0, 100.0], [0.0, 300.0]]], np.float32)
    for each in (True, False):
        found, order = entailments(logits, 1, each=each)
        assert np.isfinite(found).all()
        assert order[0].argsort().tolist() == [1, 0, 2]
