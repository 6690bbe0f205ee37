"""The task of a checkpoint, from its own files alone; and refusals."""

import json

import pytest

from bei.checkpoint.load import read
from bei.errors import SetupError
from tests.support.tiny_models import random_model, save, write_json

ONE, TWO = {0: "relevant"}, {0: "no", 1: "yes"}


def edit(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: v for key, v in (config | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("head", "labels", "task", "scoring"),
    [
        ("ForSequenceClassification", ONE, "reranker", "sigmoid"),
        ("ForSequenceClassification", TWO, "classifier", "softmax"),
        ("ForTokenClassification", TWO, "entities", "softmax"),
        ("", TWO, "embedding", "identity"),
        ("ForMaskedLM", TWO, "embedding", "identity"),
    ],
)
def test_by_the_class_that_saved_it(tmp_path, head, labels, task, scoring):
    checkpoint = read(save(tmp_path, random_model("bert", 0, head, id2label=labels), pooling=None), "m")
    edit(tmp_path, id2label={str(i): name for i, name in labels.items()})
    checkpoint = read(tmp_path, "m")
    assert (checkpoint.task, checkpoint.scoring) == (task, scoring)
    assert checkpoint.labels == (tuple(labels.values()) if task in ("reranker", "classifier", "entities") else ())


def test_splade_is_said_by_the_user_of_a_masked_language_model(tmp_path):
    folder = save(tmp_path, random_model("bert", 0, "ForMaskedLM"), pooling=None)
    assert read(folder, "m", pooling="splade").task == "sparse"
    other = save(tmp_path / "other", random_model("bert"), pooling=None)
    with pytest.raises(SetupError, match="pooling `splade` needs the head of a masked language model"):
        read(other, "m", pooling="splade")


def test_modules_json_comes_before_the_class(tmp_path):
    assert read(save(tmp_path, random_model("bert", 0, "ForMaskedLM")), "m").task == "embedding"


@pytest.fixture
def classifier(tmp_path):
    folder = save(tmp_path, random_model("bert", 0, "ForSequenceClassification", id2label=TWO), pooling=None)
    edit(folder, id2label={"0": "no", "1": "yes"})
    return folder


SCORINGS = [
    ({"problem_type": "multi_label_classification"}, "sigmoid"),
    ({"problem_type": "single_label_classification"}, "softmax"),
    ({"problem_type": "regression"}, "identity"),
    ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
    ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
    ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
]


@pytest.mark.parametrize(("changes", "scoring"), SCORINGS)
def test_scoring(classifier, changes, scoring):
    edit(classifier, **changes)
    assert read(classifier, "m").scoring == scoring


def test_one_label_by_problem_type(tmp_path):
    """As in transformers' pipeline: a regression's number is no probability, unless sentence-transformers says so."""
    folder = save(tmp_path, random_model("bert", 0, "ForSequenceClassification", id2label=ONE), pooling=None)
    edit(folder, problem_type="regression")
    assert read(folder, "m").scoring == "identity"
    edit(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    assert read(folder, "m").scoring == "sigmoid"
    edit(folder, problem_type="single_label_classification", sentence_transformers=None)
    assert read(folder, "m").scoring == "sigmoid"


def test_labels_may_be_numbers(classifier):
    """As transformers takes them: their names are strings."""
    edit(classifier, id2label={"0": 0, "1": 5})
    assert read(classifier, "m").labels == ("0", "5")


REFUSED = {
    "no labels": ({"id2label": None}, 'without `id2label`; add one name for each row .*: "id2label": {"0":'),
    "a label missing": ({"id2label": {"0": "a", "2": "c"}}, "must name the rows 0 to 1, each once"),
    "more labels than rows": (
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        r"classifier\.weight has shape \(2, 48\), config\.json says \(3, 48\)",
    ),
    "another classifier": (
        {"architectures": ["BertForMultiLabelClassification"]},
        "is not supported; classifiers and rerankers are",
    ),
    "unknown activation": (
        {"sentence_transformers": {"activation_fn": "mine.Softplus"}},
        "activation 'mine.Softplus' is not supported; use Sigmoid, Softmax, Identity",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_load(classifier, case):
    changes, message = REFUSED[case]
    edit(classifier, **changes)
    with pytest.raises(SetupError, match=message):
        read(classifier, "m")
