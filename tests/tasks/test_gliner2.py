"""GLiNER2: entities whose labels the request names, against the arithmetic of the library `gliner2`."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.errors import SetupError
from bei.tokenizer.words import _second
from tests.support.calls import call, near, post
from tests.support.gliner2_models import gliner2, save_gliner2, splitter
from tests.support.gliner_models import compare, each_seed
from tests.support.task_models import start
from tests.support.tiny_models import write_json

TEXTS = [
    "the cat sat on the mat",
    "It ran under a big-old tree, then it sat!",
    "Red BLUE dog",
    "a",
    "write to old.cat@mat.tree or www.cat.dog/a now. @dog ran",
]
LABELS = {"cat": "cat", "big dog": "big dog", "tree": "tree"}
DESCRIBED = {"cat": "a small cat", "tree": "tree, old"}
KINDS = {
    "count_lstm": {},
    "count_lstm_v2": {"counting_layer": "count_lstm_v2"},
    "mean": {"token_pooling": "mean"},
    "max": {"token_pooling": "max"},
}


pytest_generate_tests = each_seed


@pytest.fixture(scope="module", params=KINDS)
def both(request, seed, tmp_path_factory):
    reference = gliner2(seed, **KINDS[request.param])
    service = start(read(save_gliner2(tmp_path_factory.mktemp("gliner2"), reference), "tiny"))
    yield reference, service
    service.close()


@pytest.mark.parametrize("labels", [LABELS, DESCRIBED], ids=["names", "described"])
@pytest.mark.parametrize("asked", [{}, {"threshold": 0.3}, {"flat_ner": False}, {"multi_label": True}], ids=str)
def test_what_the_library_finds(both, labels, asked):
    reference, service = both
    named = list(labels) if labels is LABELS else labels
    together = post(service, "/predict_tokens", {"inputs": TEXTS, "labels": named, **asked})
    arguments = {name: value for name, value in asked.items() if name != "multi_label"}
    for text, answer in zip(TEXTS, together, strict=True):
        compare(answer, reference.predict(text, labels, **arguments))
    assert any(together)
    assert near(post(service, "/predict_tokens", {"inputs": TEXTS[1], "labels": named, **asked}), together[1:2])


def test_one_label_for_each_place_where_the_request_says_so(both):
    answers = post(both[1], "/predict_tokens", {"inputs": TEXTS, "labels": list(LABELS), "multi_label": False})
    for answer in answers:
        assert all(before["end"] <= after["start"] for before, after in pairwise(answer))


@pytest.fixture
def folder(tmp_path):
    return save_gliner2(tmp_path / "model", gliner2())


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **fields})


def test_a_text_that_has_none(tmp_path):
    reference = gliner2()
    reference.model.count_pred[2].bias.data[0] += 1000
    service = start(read(save_gliner2(tmp_path, reference), "tiny"))
    answers = post(service, "/predict_tokens", {"inputs": TEXTS, "labels": list(LABELS), "threshold": 0.0})
    service.close()
    assert answers == [[]] * len(TEXTS)


def test_the_period_after_a_text_is_no_part_of_an_entity(both):
    answers = post(both[1], "/predict_tokens", {"inputs": TEXTS, "labels": list(LABELS), "threshold": 0.0})
    for text, answer in zip(TEXTS, answers, strict=True):
        assert all(of["start"] < of["end"] <= len(text) for of in answer)
        assert all(of["token"] == text[of["start"] : of["end"]] for of in answer)


def test_labels_are_required(both):
    reply = call(both[1], "/predict_tokens", {"inputs": TEXTS[0]})
    assert reply.status == 422
    assert "`labels` is required" in json.loads(reply.body)["error"]


def outcome(folder) -> str:
    try:
        checkpoint = read(folder, "tiny")
        return repr((checkpoint.spec, {**vars(checkpoint.gliner), "tensors": sorted(checkpoint.gliner.tensors)}))
    except SetupError as refused:
        return str(refused)


WITHOUT_EFFECT = {
    **{"architectures": ["Other"], "architecture_version": 2, "config_version": 9, "model_name": "a/other"},
    **{"attn_implementation": "eager", "max_len": 7, "dtype": "float16", "transformers_version": "4.1.0"},
    "boundary_head": {"boundary_dim": 3},
}
"""`max_len` is of training: the library's extract_entities does not cut by it."""


def test_every_key_of_the_config(folder):
    """ExtractorConfig's."""
    expected = outcome(folder)
    assert expected.startswith("(EncoderSpec")
    before = json.loads((folder / "config.json").read_text())
    keys = before.keys() | WITHOUT_EFFECT.keys() | {"max_width"}
    others = {
        **{"model_type": "strange", "architecture": "boundary", "token_pooling": "mean"},
        **{"counting_layer": "count_lstm_moe", "span_head": {"max_width": 4}, "max_width": 5, **WITHOUT_EFFECT},
    }
    assert others.keys() == keys
    silent = set()
    for key, other in others.items():
        change(folder, **{key: other})
        silent |= {key} if outcome(folder) == expected else set()
        write_json(folder / "config.json", before)
    assert silent == WITHOUT_EFFECT.keys() | {"max_width"}  # which span_head overrules
    write_json(
        folder / "config.json", {key: of for key, of in {**before, "max_width": 5}.items() if key != "span_head"}
    )
    assert read(folder, "tiny").gliner.max_width == 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architecture": "boundary"}, "architecture 'boundary' is not supported; supported: span"),
        ({"counting_layer": "count_lstm_moe"}, "counting_layer"),
        ({"counting_layer": "count_lstm_v2"}, "tensors missing"),
        ({"token_pooling": "last"}, "token_pooling"),
        ({"span_head": {"span_mode": "marker"}}, "span_head"),
        ({"span_head": {"max_width": -1}}, "max_width"),
        ({"span_head": 3}, "span_head"),
    ],
    ids=str,
)
def test_refusals(folder, fields, named):
    change(folder, **fields)
    assert named in outcome(folder)


def test_an_encoder_without_a_config(folder):
    (folder / "encoder_config" / "config.json").unlink()
    assert "encoder_config/config.json is missing" in outcome(folder)


def test_words_are_the_library_s():
    texts = [
        *TEXTS,
        "a\u0301b e\u0301-f_g 12-3 naïve İstanbul @a_b x@y.z a.b+c@d-e.fg http://a.b/c?d=e, WWW.A.B c\u200dd",
    ]
    for text in texts:
        found, expected = ([of.span() for of in by.finditer(text)] for by in (_second(), splitter()))
        assert found == expected


@pytest.mark.parametrize("unit", ["a.", "a@", "a.a@", "-a", "@a.", "._", "http://"])
def test_words_of_a_long_text_take_linear_time(unit):
    """An address is looked for at every character. Ten times as long a text takes at most fifty times as long."""

    def seconds(count: int) -> float:
        text, began = unit * count, time.perf_counter()
        assert sum(1 for _ in _second().finditer(text)) > 0
        return time.perf_counter() - began

    assert min(seconds(20_000) for _ in range(2)) < 50 * max(0.02, min(seconds(2_000) for _ in range(2)))


def test_scores_are_finite(both):
    (answer,) = post(both[1], "/predict_tokens", {"inputs": TEXTS[0], "labels": ["cat"], "raw_scores": True})
    assert np.isfinite([score for of in answer for score in of["results"].values()]).all()
