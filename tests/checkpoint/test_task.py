"""The task of a checkpoint, from its own files alone; and refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from bei.settings import Settings
from tests.support.configs import tiny_config
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


# -- names of outputs, and rewards -----------------------------------------------------------------------------------


def test_names_by_the_settings(tmp_path, classifier, caplog):
    """transformers 5 writes no `id2label` for two labels with its own names."""
    edit(classifier, id2label=None)
    checkpoint = read(classifier, "m", label_names=("bad", "good"))
    assert (checkpoint.task, checkpoint.labels) == ("classifier", ("bad", "good"))
    with pytest.raises(SetupError, match="has shape"):
        read(classifier, "m", label_names=("bad", "fair", "good"))
    edit(classifier, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert read(classifier, "m", label_names=("bad", "good")).labels == ("bad", "good")
    with pytest.raises(SetupError, match="BEI_LABELS has 1 names, and config"):
        read(classifier, "m", label_names=("good",))
    read(save(tmp_path / "embedder", random_model("bert")), "m", label_names=("good",))
    assert "BEI_LABELS has no effect: the checkpoint's task is embedding" in caplog.text


def test_the_setting_has_commas_or_is_repeated():
    assert Settings.load(tiny_config(), environ={"BEI_LABELS": "bad, good"}).labels == ("bad", "good")
    assert Settings.load(tiny_config(), environ={}, labels="bad,good").labels == ("bad", "good")
    with pytest.raises(SetupError, match="labels"):
        Settings.load(tiny_config(), environ={}, labels="bad,,good")


@pytest.mark.parametrize(
    ("name", "scoring"),
    [
        ("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "identity"),
        ("OpenAssistant/reward-model-deberta-v3-large-v2", "identity"),
        ("rewards/ms-marco", "sigmoid"),  # the owner's name says nothing
    ],
)
def test_a_reward_is_the_number_itself(tmp_path, name, scoring):
    folder = save(tmp_path, random_model("qwen3", 0, "ForSequenceClassification", id2label=ONE), pooling=None)
    edit(folder, id2label={"0": "LABEL_0"})
    checkpoint = read(folder, name)
    assert (checkpoint.task, checkpoint.scoring) == ("reranker", scoring)
    edit(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    assert read(folder, name).scoring == "sigmoid"


def test_a_reward_model_s_class(tmp_path):
    """Qwen2.5-Math-RM: two layers on the last token, written out here, because their class is remote code."""
    model = random_model("qwen2")
    folder = save(tmp_path, model, pooling=None)
    torch.manual_seed(3)
    score = torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.ReLU(), torch.nn.Linear(48, 1))
    stored = {f"model.{name}": of for name, of in load_file(folder / "model.safetensors").items()}
    head = {f"score.{name}": of.detach().numpy() for name, of in score.state_dict().items()}
    save_file({**stored, **head}, folder / "model.safetensors")
    own = {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"}
    edit(folder, architectures=["Qwen2ForRewardModel"], auto_map=own)
    checkpoint = read(folder, "Qwen/Qwen2.5-Math-RM-72B")
    assert (checkpoint.task, checkpoint.scoring, checkpoint.labels) == ("reranker", "identity", ("LABEL_0",))
    ids = [[2, 5, 9, 11, 3], [7, 8]]
    rows = TorchEngine(checkpoint, EngineOptions(precision="fp32")).run(Batch.pack(ids))
    with torch.no_grad():
        expected = [score(model(torch.tensor([s])).last_hidden_state[0, -1]).numpy() for s in ids]
    np.testing.assert_allclose(rows, expected, atol=2e-5)
