"""`bei eval`: the real command on tiny models and a real server, and its statistics against scipy."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import yaml
from click.testing import CliRunner

from bei import cli
from bei.evaluate import compare, statistics
from bei.evaluate.compare import Comparison
from bei.evaluate.statistics import Estimate
from bei.evaluate.verdict import verdict
from bei.samples.stsb import pairs, sentences
from tests.support.configs import tiny_config
from tests.support.servers import serving
from tests.support.tiny_models import random_model, save

RNG = np.random.default_rng(0)


def run(*arguments: object):
    return CliRunner().invoke(cli.main, ["eval", *map(str, arguments)])


@pytest.fixture
def texts(tmp_path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(sentences()[:60]))
    return file


def test_the_samples_are_stsb():
    of = pairs()
    assert len(of.first) == len(of.second) == len(of.scores) == 1379
    assert (min(of.scores), max(of.scores)) == (0.0, 5.0)


def test_spearman_is_scipy_s():
    for values in (RNG.normal(size=(50, 2)), RNG.integers(4, size=(50, 2)).astype(float)):
        assert statistics.spearman(values) == pytest.approx(scipy.stats.spearmanr(values).statistic)


def test_an_interval_holds_the_mean_and_is_narrower_with_more_values():
    few, many = (statistics.bootstrap(RNG.normal(3, 1, count)) for count in (20, 2000))
    for of in (few, many):
        assert of.least < of.mean < of.most
    assert many.most - many.least < (few.most - few.least) / 5
    assert (many.most - many.least) / 2 == pytest.approx(1.96 / np.sqrt(2000), rel=0.2)


def test_what_is_kept():
    exact = np.arange(40.0)[None]
    assert statistics.neighbors_kept(exact, exact * 2).tolist() == [1]
    moved = exact.copy()
    moved[0, 30:32] = -1
    assert statistics.neighbors_kept(exact, moved).tolist() == [0.8]
    assert statistics.order_kept(exact, exact**3).tolist() == [1]
    assert statistics.order_kept(exact, -exact).tolist() == [0]
    swapped = np.array([[0.0, 2.0, 1.0, 3.0]])
    assert statistics.order_kept(np.arange(4.0)[None], swapped) == pytest.approx([5 / 6])
    assert statistics.order_kept(np.ones((1, 3)), swapped[:, :3]).tolist() == [1]


def test_a_precision_against_fp32(tmp_path, texts):
    model = save(tmp_path / "model", random_model("bert"))
    flags = (model, "--texts", texts, "--engine", "torch", "--precision", "bf16")
    found = json.loads(run(*flags, "--json").stdout)
    assert (found["ours"].partition(" ")[0], found["exact"].partition(" ")[0], found["texts"]) == (
        *("bf16", "fp32", len(set(sentences()[:60]))),
    )
    cosine, neighbors = found["measures"]["cosine"], found["measures"]["neighbors"]
    assert 0.99 < found["worst"] <= cosine["least"] <= cosine["mean"] <= cosine["most"] < 1
    assert 0 < neighbors["least"] <= neighbors["mean"] <= 1
    result = run(*flags)
    assert "%|" not in result.stderr
    words = result.stdout.splitlines()
    assert words[-1] == found["verdict"]
    assert words[0].startswith("bf16 on cpu")
    refused = run(*flags, "--min-cosine", "1", "--min-entities", "0.5")
    assert refused.exit_code == 1
    assert f"--min-cosine 1: it is {cosine['mean']:.5f}" in refused.stderr
    assert "--min-entities: this task has no such measure; it has cosine, neighbors, order" in refused.stderr
    assert run(*flags, "--min-cosine", "0.9").exit_code == 0


@pytest.mark.parametrize(
    ("head", "labels", "measures"),
    [
        ("ForSequenceClassification", ["x"], {"scores", "neighbors", "order"}),
        ("ForSequenceClassification", ["x", "y", "z"], {"scores", "labels"}),
        ("ForTokenClassification", ["O", "B-A", "B-B"], {"entities"}),
    ],
)
def test_each_task_has_its_measures_and_on_a_terminal_its_bars(tmp_path, texts, head, labels, measures, monkeypatch):
    monkeypatch.setattr(compare, "is_watched", lambda: True)
    of = dict(enumerate(labels))
    model = save(tmp_path / "model", random_model("bert", 0, head, id2label=of), pooling=None)
    result = run(model, "--texts", texts, "--engine", "torch", "--precision", "bf16", "--json")
    assert result.exit_code == 0, result.output
    bars = result.stderr.rstrip("\n").split("\n")
    assert [("  0%|" in bar, "100%|" in bar) for bar in bars] == [(True, True)] * 2, "one for each precision"
    found = json.loads(result.stdout)["measures"]
    assert set(found) == measures
    for share in measures - {"scores"}:
        assert 0.5 < found[share]["mean"] <= 1


def estimate(mean: float, least: float) -> Comparison:
    measures = {"cosine": Estimate(0.5, 0.4, 0.6), "neighbors": Estimate(mean, least, 1)}
    return Comparison("int8 on cpu x 2, avx2", "fp32 on cpu", 60, measures, 0.4)


@pytest.mark.parametrize(
    ("mean", "least", "words"),
    [(0.98, 0.95, "is fine"), (0.98, 0.94, "is usable"), (0.9, 0.85, "is usable"), (0.98, 0.84, "keep fp32 or bf16")],
)
def test_a_verdict_is_about_the_lower_end(mean, least, words):
    said = verdict(estimate(mean, least))
    assert said.startswith("int8 ") and words in said
    assert f"{mean:.1%} [{least:.1%}, 100.0%]" in said


def test_a_server_has_the_correlation_of_its_model(tmp_path, tiny_folder):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    flags = ("--engine", "torch", "--precision", "fp32")
    of_model = json.loads(run(tiny_folder, *flags, "--json").stdout)["spearman"]
    with serving(*flags, log=tmp_path / "log", config=tmp_path / "config.yaml") as url:
        of_server = json.loads(run("--url", url, "--json").stdout)["spearman"]
        below = run("--url", url, "--min-spearman", "0.999")
        local = run("--url", url, "--mteb", "absent")
    assert of_server == pytest.approx(of_model, abs=1e-3)
    assert of_model["least"] < of_model["mean"] < of_model["most"]
    assert (below.exit_code, "--min-spearman 0.999: it is 0." in below.stderr) == (1, True)
    assert (local.exit_code, local.stderr.startswith("bei: --mteb")) == (2, True)
    if find_spec("mteb") is None:
        assert "mteb is not installed: pip install" in local.stderr


def test_mteb_evaluates_a_model_in_this_process(monkeypatch, tiny_folder):
    """A stand-in has mteb's names; tests/test_inprocess.py has its calls of an encoder."""

    def evaluate(encoder, tasks, cache):
        rows = encoder.encode([{"text": ["a", "a", "b"]}], task_metadata=SimpleNamespace(name="STS12", type="STS"))
        scores = encoder.similarity(rows, rows)
        results = [SimpleNamespace(task_name=task, get_score=lambda: scores[0, 1]) for task in tasks]
        return SimpleNamespace(task_results=results)

    monkeypatch.setitem(sys.modules, "mteb", SimpleNamespace(get_tasks=lambda tasks: tasks, evaluate=evaluate))
    flags = ("--mteb", "STS12", "--mteb", "SciFact", "--engine", "torch", "--precision", "fp32")
    assert run(tiny_folder, *flags).stdout == "STS12: 1.0000\nSciFact: 1.0000\n"
    refused = run(tiny_folder / "absent", *flags)
    assert (refused.exit_code, "--mteb" in refused.stderr) == (2, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["MODEL", "--url", "http://127.0.0.1:1"], "--url evaluates a server"),
        (["--url", "http://127.0.0.1:1", "--precision", "int8"], "--precision is about a model in this process"),
        (["MODEL", "--mteb", "STS12", "--texts", "TEXTS"], "--texts and --mteb are two evaluations"),
        (["MODEL", "--min-cosine", "0.9"], "--min-cosine needs --texts"),
        (["MODEL", "--texts", "TEXTS", "--min-spearman", "0.9"], "--min-spearman is a bound of STS-B"),
        (["MODEL", "--texts", "FEW", "--engine", "null"], "has 2 texts; give it 12 or more"),
        (["MODEL", "--texts", "TEXTS", "--engine", "torch", "--precision", "fp32"], "runs in fp32 on cpu"),
        (["--url", "http://127.0.0.1:1"], "does not answer"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_status_2(tmp_path, tiny_folder, texts, arguments, told):
    few = tmp_path / "few.txt"
    few.write_text("a\nb\na\n")
    places = {"MODEL": tiny_folder, "TEXTS": texts, "FEW": few}
    result = run(*(places.get(word, word) for word in arguments))
    assert (result.exit_code, told in result.stderr.splitlines()[-1]) == (2, True), result.stderr
