"""GLiNER: entities whose labels the request names, against the arithmetic of the library `gliner`."""

import json
import re
from itertools import chain

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.tasks.named_entities import _taken
from tests.support.calls import call, near, post, refused
from tests.support.gliner_models import Reference, compare, each_seed, gliner, save_gliner
from tests.support.task_models import start, tagger

TEXTS = [
    "the cat sat on the mat",
    "it ran under a big-old tree, then it sat!",
    "Red BLUE dog",
    "a",
    "  \n",
    "the old cat; was it small? blue_tree",
]
LABELS = ["cat", "big dog", "tree"]
KINDS = {
    "markerV0": {},
    "marker": {"span_mode": "marker"},
    "token_level": {"span_mode": "token_level", "model_type": "gliner_uni_encoder_token"},
    "mean, two layers of RNN": {"subtoken_pooling": "mean", "num_rnn_layers": 2},
    "max, no RNN": {"subtoken_pooling": "max", "num_rnn_layers": 0},
    "last, without projection": {"subtoken_pooling": "last", "embed_ent_token": False, "hidden_size": 48},
}
ASKED = [
    {},
    {"flat_ner": False},
    {"multi_label": True},
    {"flat_ner": False, "multi_label": True, "threshold": 0.3},
    {"threshold": 0.0},
    {"threshold": 1.0},
]


pytest_generate_tests = each_seed


@pytest.fixture(scope="module", params=KINDS)
def both(request, seed, tmp_path_factory):
    reference = gliner(seed, **KINDS[request.param])
    folder = save_gliner(tmp_path_factory.mktemp("gliner"), reference, pickled=request.param == "marker")
    service = start(read(folder, "tiny"))
    yield reference, service
    service.close()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    reference = gliner()
    service = start(read(save_gliner(tmp_path_factory.mktemp("one"), reference), "tiny"))
    yield reference, service
    service.close()


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_what_the_library_finds(both, asked):
    reference, service = both
    together = post(service, "/predict_tokens", {"inputs": TEXTS, "labels": LABELS, **asked})
    for text, answer in zip(TEXTS, together, strict=True):
        compare(answer, reference.predict(text, LABELS, **asked))
    alone = post(service, "/predict_tokens", {"inputs": TEXTS[1], "labels": LABELS, **asked})
    assert near(alone, together[1:2])
    assert near(post(service, "/", {"inputs": TEXTS[1], "parameters": {"labels": LABELS, **asked}}), alone)


def test_something_is_found_and_something_is_not(both):
    found = post(both[1], "/predict_tokens", {"inputs": TEXTS, "labels": LABELS, "multi_label": True})
    everything = post(both[1], "/predict_tokens", {"inputs": TEXTS, "labels": LABELS, **ASKED[3], "threshold": 0.0})
    assert {label for text in found for entity in text for label in entity["results"]}
    assert found[4] == []
    assert 2 * sum(map(len, found)) < sum(map(len, everything))


def test_descriptions_are_read_in_place_of_labels(one):
    reference, service = one
    described = {"animal": "cat", "plant": "tree"}
    (answer,) = post(service, "/predict_tokens", {"inputs": TEXTS[1], "labels": described})
    expected = reference.predict(TEXTS[1], ["cat", "tree"])
    names = {"cat": "animal", "tree": "plant"}
    compare(answer, [{**of, "label": names[of["label"]]} for of in expected])


def test_logits(one):
    body = {"inputs": TEXTS, "labels": LABELS, "multi_label": True}
    scores, logits = (post(one[1], "/predict_tokens", {**body, "raw_scores": raw}) for raw in (False, True))
    for of, raw in zip(chain(*scores), chain(*logits), strict=True):
        ((label, score),), ((same, logit),) = of["results"].items(), raw["results"].items()
        assert (label, of["start"]) == (same, raw["start"])
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


# -- long texts ------------------------------------------------------------------------------------------------------

LONG = " ".join(f"{text}." for text in (TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[5])) * 3
"""Of 99 words: the model reads 12 at once, and spans of 3."""


def windows_of(text, words=12, overlap=3):
    count = len(re.findall(r"\w+(?:[-_]\w+)*|\S", text))
    starts = range(0, count - overlap, words - overlap)
    return [range(start, min(start + words, count)) for start in starts]


@pytest.mark.parametrize("asked", ASKED[:4], ids=str)
def test_a_long_text_is_read_in_windows(one, asked):
    reference, service = one
    texts = [TEXTS[0], LONG, TEXTS[4], LONG[7:]]
    answers = post(service, "/predict_tokens", {"inputs": texts, "labels": LABELS, **asked})
    for text, answer in zip(texts, answers, strict=True):
        compare(answer, reference.predict(text, LABELS, windows=windows_of(text), **asked))


def test_windows_are_bounded_by_tokens_too(one):
    """Of 64 tokens that the encoder reads, 10 are the labels' and the specials'."""
    text = " ".join(["oldmatdogcat"] * 12)  # of 4 tokens each
    (answer,) = post(one[1], "/predict_tokens", {"inputs": text, "labels": LABELS, "threshold": 0.0})
    assert answer[0]["start"] == 0
    assert answer[-1]["end"] == len(text)
    endless = "cat " + "q" * 3000 + " dog"
    (answer,) = post(one[1], "/predict_tokens", {"inputs": endless, "labels": LABELS, "threshold": 0.0})
    assert answer[-1]["end"] == len(endless)


def test_a_text_that_must_not_be_cut(one):
    body = {"inputs": ["a", LONG], "labels": LABELS, "truncate": False}
    status, message = refused(one[1], "/predict_tokens", body)
    assert status == 422
    assert "at most 12 words" in message
    assert "(input 1)" in message
    post(one[1], "/predict_tokens", {**body, "inputs": TEXTS[0]})


# -- what a request may say ------------------------------------------------------------------------------------------

NAMED = {"inputs": TEXTS[0], "labels": LABELS}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": TEXTS[0]}, "labels"),
        ({**NAMED, "labels": []}, "labels"),
        ({**NAMED, "labels": {}}, "labels"),
        ({**NAMED, "labels": "cat"}, "labels"),
        ({**NAMED, "labels": ["cat", 3]}, "labels"),
        ({**NAMED, "labels": ["cat", " "]}, "labels"),
        ({**NAMED, "labels": {"cat": None}}, "labels"),
        ({**NAMED, "labels": {"cat": ["a"]}}, "labels"),
        ({**NAMED, "labels": ["cat " * 40]}, "labels"),
        ({**NAMED, "labels": [f"cat{i}" for i in range(500)]}, "labels"),
        ({**NAMED, "parameters": {"labels": ["cat"]}}, "parameters.labels"),
        ({**NAMED, "threshold": 1.5}, "threshold"),
        ({**NAMED, "threshold": -0.1}, "threshold"),
        ({**NAMED, "threshold": "0.5"}, "threshold"),
        ({**NAMED, "threshold": True}, "threshold"),
        ({**NAMED, "flat_ner": 1}, "flat_ner"),
        ({**NAMED, "aggregation_strategy": "simple"}, "aggregation_strategy"),
        ({**NAMED, "parameters": {"ignore_labels": ["O"]}}, "ignore_labels"),
        ({**NAMED, "inputs": ""}, "inputs"),
        ({**NAMED, "inputs": ["a", ""]}, "inputs"),
        ({**NAMED, "inputs": []}, "inputs"),
    ],
    ids=lambda of: str(of)[:60],
)
def test_refusals_name_the_field(one, body, field):
    reply = call(one[1], "/predict_tokens", body)
    assert reply.status in (400, 422)
    assert f"`{field}`" in json.loads(reply.body)["error"], reply.body


def test_labels_that_look_like_the_model_s_own_tokens(one):
    """A mark in a label or in a text moves no other label's state."""
    reference, service = one
    tricky = ["cat", "<<ENT>> dog <<SEP>>", "[SEP]", "tree"]
    text = "the <<ENT>> cat <<SEP>> sat [SEP]"
    (answer,) = post(service, "/predict_tokens", {"inputs": text, "labels": tricky, "multi_label": True})
    assert {label for of in answer for label in of["results"]} <= set(tricky)
    (plain,) = post(service, "/predict_tokens", {"inputs": text, "labels": LABELS})
    compare(plain, reference.predict(text, LABELS, windows=windows_of(text)))


@pytest.fixture(scope="module")
def tagging(tmp_path_factory):
    service = start(tagger(tmp_path_factory.mktemp("tagger")))
    yield service
    service.close()


@pytest.mark.parametrize(
    "field", [{"labels": ["a"]}, {"threshold": 0.5}, {"flat_ner": False}, {"multi_label": True}], ids=str
)
def test_a_model_with_labels_of_its_own(tagging, field):
    status, message = refused(tagging, "/predict_tokens", {"inputs": "a", **field})
    assert status == 422
    assert f"`{next(iter(field))}`" in message


# -- what a request may cost -----------------------------------------------------------------------------------------


def small(one, limit: int):
    """The model of `one` with few bytes for requests in flight."""
    service = start(one[1].checkpoint)
    service.in_flight.limit = limit
    return service


def test_labels_count_in_every_window(one):
    service, text = small(one, 400_000), "cat dog " * 400
    labels = ["cat"], ["cat", "old dog", "big tree", *(f"c{i}" for i in range(6))]
    few, many = (status(service, text, of, threshold=1.0) for of in labels)
    service.close()
    assert (few, many) == (200, 413)


def status(service, text, labels, **fields):
    return call(service, "/predict_tokens", {"inputs": text, "labels": labels, **fields}).status


def test_spans_are_counted_while_they_are_found(one):
    service, text, labels = small(one, 300_000), "the cat sat on " * 30, ["cat", "dog", "tree", "mat"]
    asked = [{"threshold": 1.0}, {"threshold": 0.0}, {"threshold": 0.0, "multi_label": True}]
    found = [status(service, text, labels, **fields) for fields in asked]
    service.close()
    assert found == [200, 200, 413]


@pytest.mark.parametrize("mode", ["markerV0", "token_level"])
def test_a_threshold_of_nothing_takes_no_longer_than_a_list_of_spans(mode):
    """Of all spans of many words, which a greedy search compares with each other."""
    words, spans = 1500, 1500 * 12 if mode == "markerV0" else 300_000
    rng = np.random.default_rng(0)
    starts = rng.integers(0, words, spans)
    ends = np.minimum(starts + rng.integers(0, 12 if mode == "markerV0" else words, spans), words - 1)
    distinct = np.unique(np.stack([starts, ends]), axis=1)
    logits = rng.normal(size=distinct.shape[1]).astype(np.float32)
    for flat in (True, False):
        taken = _taken(*distinct, logits, words, flat=flat)
        kept = distinct[:, taken].T.tolist()
        assert 2 * words > len(kept) > 20
        some = kept[:: max(1, len(kept) // 50)]
        pairs = [(tuple(a), tuple(b)) for a in some for b in some if a != b]
        assert not any(Reference.conflict(a, b, flat, False) for a, b in pairs)
