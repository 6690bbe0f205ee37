"""One command for any model: folders and repositories without a config.yaml, and the config that they would have."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bei import cli, launch
from bei.server import hosting
from bei.settings import Settings, several
from tests.support.tiny_models import random_model, save


def run(*arguments: object, **environment: str):
    return CliRunner().invoke(cli.main, list(map(str, arguments)), env=environment)


@pytest.fixture
def served(monkeypatch) -> list[Settings]:
    """The settings of each model that `bei serve` would serve."""
    found: list[Settings] = []

    def serve(models: Sequence[Settings], *others: object) -> None:
        found.extend(models)

    monkeypatch.setattr(launch, "serve", serve)
    monkeypatch.setattr(hosting, "start_logs", lambda settings, level: None)
    return found


def test_serve_takes_folders_and_repositories_with_its_own_defaults(served, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("serve", tiny_folder, "owner/name", "--port", "9000", BEI_CONFIG="absent.yaml")
    assert result.exit_code == 0, result.output
    assert [(one.source, one.repo, one.port) for one in served] == [
        ("LOCAL", str(tiny_folder), 9000),
        ("HF", "owner/name", 9000),
    ]
    defaults = Settings.model_fields
    for name in ("max_client_batch_size", "max_concurrent_requests", "host", "auto_truncate"):
        assert getattr(served[0], name) == defaults[name].default


def test_serve_alone_reads_config_yaml(served, tmp_path, monkeypatch, tiny_folder):
    config = tmp_path / "config.yaml"
    config.write_text(run("info", tiny_folder, "--as-config").stdout)
    monkeypatch.chdir(tmp_path)
    assert run("serve").exit_code == 0
    assert [one.repo for one in served] == [str(tiny_folder)]


def test_a_quantization_is_asked_without_a_base_model():
    (settings,) = several.named(["owner/name"], [], environ={}, quantization="fp8")
    assert settings.quantization == "fp8"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "HERE/modle"], "HERE/modle is not there; did you mean HERE/model?"),
        (["build", "HERE/modle"], "HERE/modle is not there; did you mean HERE/model?"),
        (["embed", "a.txt", "b.npy", "--model", "HERE/modle"], "is not there; did you mean HERE/model?"),
        (["info", "HERE/nothing-like-it"], "is not there; name the folder of a model, or a repository of the hub"),
        (["info", "HERE/model/config.json"], "is a file; name the folder of a model"),
        (["serve", "HERE/config.yaml"], "is no model but a config; name it with --config HERE/config.yaml"),
        (["serve", "a/b", "--config", "c.yaml"], "a/b and --config c.yaml both say which model; name models, or"),
        (["build", "a/b", "--config", "c.yaml"], "a/b and --config c.yaml both say which model; name models, or"),
        (["serve", "a/b", "c/d", "--pooling", "mean"], "--pooling is about one model, and 2 are served"),
        (["info", "owner/absent"], "owner/absent cannot be downloaded"),
        (["info", "--as-config"], "--as-config needs one MODEL"),
        (["info", "HERE/model", "--as-config", "--json"], "leave --json out"),
        (["info", "HERE/model", "--as-config", "--quantization", "fp8"], "`encoder_bert` is served in 16 bits"),
    ],
)
def test_what_cannot_be_served_is_one_line_with_the_remedy(tmp_path, words, told):
    save(tmp_path / "model", random_model("bert"))
    result = run(*(word.replace("HERE", str(tmp_path)) for word in words))
    assert result.exit_code == 2
    assert told.replace("HERE", str(tmp_path)) in result.stderr
    assert (result.stderr.startswith("bei: "), result.stderr.count("\n")) == (True, 1)


KINDS = [
    ("bert", None, {}, "encoder_bert", "/v1/embeddings"),
    ("bert", "ForSequenceClassification", {"id2label": {0: "a"}}, "encoder_bert", "/rerank"),
    ("bert", "ForTokenClassification", {"id2label": {0: "O", 1: "B-PER"}}, "encoder_bert", "/predict_tokens"),
    ("qwen3", None, {}, "encoder", "/v1/embeddings"),
]


def made(folder: Path, family: str, head: str | None, options: dict) -> Path:
    model = random_model(family, 0, head, **options) if head else random_model(family)
    return save(folder, model, pooling=None) if head else save(folder, model)


@pytest.mark.parametrize(("family", "head", "options", "kind", "route"), KINDS)
def test_the_config_of_a_model_serves_the_same_model(tmp_path, family, head, options, kind, route):
    folder, flags = made(tmp_path / "model", family, head, options), ("--engine", "null", "--no-auto-truncate")
    result = run("info", folder, *flags, "--as-config")
    assert result.exit_code == 0, result.output
    config = tmp_path / "config.yaml"
    config.write_text(result.stdout)
    block = yaml.safe_load(result.stdout)["trt_llm"]
    assert block["build"]["base_model"] == kind
    assert block["runtime"]["webserver_default_route"] == route
    direct = json.loads(run("info", folder, *flags, "--json").stdout)
    by_config = json.loads(run("info", "--config", config, "--json").stdout)
    assert direct["settings"].pop("route") is None
    assert by_config["settings"].pop("route") == route
    assert (direct["set_by"]["flag"], by_config["set_by"].keys()) == (["auto_truncate", "engine"], {"config"})
    assert by_config == {**direct, "engine": by_config["engine"], "set_by": by_config["set_by"]}


def test_a_repository_stays_one_and_keeps_its_revision():
    result = run("info", "sentence-transformers/all-MiniLM-L6-v2", "--as-config", "--revision", "main")
    block = yaml.safe_load(result.stdout)["trt_llm"]
    repository = {"source": "HF", "repo": "sentence-transformers/all-MiniLM-L6-v2", "revision": "main"}
    assert block["build"]["checkpoint_repository"] == repository
    assert not result.stdout.startswith("#")
