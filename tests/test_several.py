"""Settings of several models in one server: a config.yaml each, and one server."""

import json
import re

import pytest
import yaml

from bei.errors import SetupError
from bei.settings import ModelSettings, several
from bei.settings.reference import settings_of
from bei.settings.several import OF_ALL_MODELS, Deployment
from tests.support.configs import tiny_config
from tests.support.documents import blocks_of


def deployment(name: str, **variables: str) -> Deployment:
    return Deployment(f"{name}.yaml", {**tiny_config(name), "environment_variables": variables})


def loaded(*deployments: Deployment, environ: dict[str, str] | None = None, **flags: object):
    return several.for_all(deployments, environ=environ or {}, **flags)


def test_each_config_names_its_model():
    found = loaded(deployment("a"), deployment("b", BEI_SERVED_MODEL_NAME="c"))
    assert [settings.served_model_name for settings in found] == ["a", "c"]
    assert [settings.repo for settings in found] == ["a", "b"]


def test_a_config_s_own_variables_are_about_its_model():
    """Truss sets environment_variables where it runs a bundle; here they count before the environment and flags."""
    found = loaded(deployment("a", BEI_POOLING="mean"), deployment("b", BEI_POOLING="last", BEI_PRECISION="fp32"))
    assert [(settings.pooling, settings.precision) for settings in found] == [("mean", "auto"), ("last", "fp32")]
    found = loaded(deployment("a"), deployment("b", BEI_PRECISION="fp32"), environ={"BEI_PRECISION": "bf16"})
    assert [settings.precision for settings in found] == ["bf16", "bf16"]
    (alone,) = loaded(deployment("a", BEI_POOLING="mean", BEI_PORT="9000"))
    assert (alone.pooling, alone.port) == ("mean", 9000)


def test_flags_and_variables_of_the_server_are_the_same_for_all():
    found = loaded(deployment("a", BEI_PORT="9000"), deployment("b", BEI_PORT="9000"), environ={"BEI_WORKERS": "2"})
    assert {(settings.port, settings.workers) for settings in found} == {(9000, 2)}
    found = loaded(deployment("a", BEI_PORT="9000"), deployment("b", BEI_PORT="9001"), port="80")
    assert {settings.port for settings in found} == {80}


@pytest.mark.parametrize(
    ("variable", "first", "second", "told"),
    [
        ("BEI_PORT", "9000", "9001", ": 9001, not 9000"),
        ("BEI_MAX_CLIENT_BATCH_SIZE", "8", "9", ": 9, not 8"),
        ("BEI_ACCESS_LOG", "true", "false", ": False, not True"),
        ("BEI_API_KEY", "secret1", "secret2", ""),
    ],
)
def test_a_contradiction_about_the_server_is_refused_by_name(variable, first, second, told):
    with pytest.raises(SetupError) as refused:
        loaded(deployment("a", **{variable: first}), deployment("b", **{variable: second}))
    assert refused.value.message == f"b.yaml contradicts a.yaml in {variable}{told}; it is about the whole server"


ABOUT_ONE = [setting for setting in settings_of(ModelSettings) if setting.name not in OF_ALL_MODELS]


@pytest.mark.parametrize("setting", ABOUT_ONE, ids=lambda setting: setting.name)
def test_what_is_about_one_model_is_not_said_of_all(setting):
    value = "mean" if setting.name == "pooling" else "1"
    for way, ways in (
        (setting.flag, {setting.name: value}),
        (setting.variable, {"environ": {setting.variable: value}}),
    ):
        with pytest.raises(SetupError, match=re.escape(f"{way} is about one model, and 2 are served; set it in")):
            loaded(deployment("a"), deployment("b"), **ways)


def test_a_model_s_own_settings_are_the_rest():
    assert {setting.name for setting in settings_of(ModelSettings)} > OF_ALL_MODELS
    assert {"repo", "revision", "source", "served_model_name", "route", "pooling", "default_prompt"} <= {
        setting.name for setting in ABOUT_ONE
    }


def test_a_refusal_names_the_config():
    broken = Deployment("b.yaml", {"trt_llm": {"build": {}}})
    with pytest.raises(SetupError, match=r"^b\.yaml: trt_llm: build"):
        loaded(deployment("a"), broken)


@pytest.mark.parametrize("value", [8080, True, None, ["a"]])
def test_a_variable_of_a_config_is_text(value):
    config = {**tiny_config("a"), "environment_variables": {"BEI_PORT": value}}
    with pytest.raises(SetupError, match=r"`environment_variables\.BEI_PORT` must be text in quotes"):
        loaded(Deployment("a.yaml", config))


BLOCK = tiny_config("a")["trt_llm"]
WHOLE = {**tiny_config("b"), "environment_variables": {"BEI_POOLING": "last"}}


def test_a_bundle_lists_its_models():
    config = {"model_metadata": {"models": [BLOCK, WHOLE]}, "environment_variables": {"BEI_PORT": "9000"}}
    found = loaded(*several.models_of("config.yaml", config))
    assert [(of.repo, of.pooling, of.port) for of in found] == [("a", None, 9000), ("b", "last", 9000)]
    (alone,) = loaded(*several.models_of("config.yaml", {**config, "model_metadata": {"models": [BLOCK]}}))
    assert (alone.repo, alone.port) == ("a", 9000)


def test_a_command_about_one_model_refuses_a_config_of_several(tmp_path, monkeypatch):
    listed = {name: tmp_path / f"{name}.yaml" for name in ("one", "two")}
    listed["one"].write_text(json.dumps({"model_metadata": {"models": [BLOCK]}}))
    listed["two"].write_text(json.dumps({"model_metadata": {"models": [BLOCK, WHOLE]}}))
    assert several.one(None, listed["one"], environ={}).repo == "a"
    told = f"this is about one model, and 2 are listed ({listed['two']}: models[0], {listed['two']}: models[1])"
    with pytest.raises(SetupError, match=re.escape(told)):
        several.one(None, listed["two"], environ={})
    monkeypatch.setenv("BEI_CONFIG", f"{listed['one']}:{listed['two']}")
    with pytest.raises(SetupError, match="and 3 are listed"):
        several.one(None, None, environ={})


def test_the_docs_list_of_models_is_one():
    (block,) = [text for text in blocks_of("docs/serving.md", "yaml") if "model_metadata:" in text]
    found = loaded(*several.models_of("config.yaml", yaml.safe_load(block)))
    assert [(of.repo.rpartition("/")[2], of.served_model_name, of.lazy) for of in found] == [
        ("all-MiniLM-L6-v2", "embedder", False),
        ("bge-reranker-v2-m3", "reranker", True),
    ]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"models": "a"}, "`model_metadata.models` must be a list of trt_llm blocks, not 'a'"),
        ({"models": [BLOCK, "a"]}, "`model_metadata.models` must be a list of trt_llm blocks"),
        ({"models": [BLOCK], "trt_llm": BLOCK}, "`trt_llm` and `model_metadata.models` both name models"),
        (
            {"models": [BLOCK, {"build": {}}]},
            "models[1]: trt_llm: build.checkpoint_repository is required",
        ),
    ],
)
def test_a_wrong_list_of_models_is_refused(config, told):
    with pytest.raises(SetupError, match=re.escape(told)):
        loaded(*several.models_of("config.yaml", {"model_metadata": config}))


def test_variables_of_a_list_are_about_all_its_models():
    config = {"model_metadata": {"models": [BLOCK, WHOLE]}, "environment_variables": {"BEI_POOLING": "mean"}}
    with pytest.raises(SetupError, match="BEI_POOLING is about one model, and 2 are served"):
        loaded(*several.models_of("config.yaml", config))


def test_a_model_may_be_lazy_beside_others():
    found = loaded(deployment("a"), deployment("b", BEI_LAZY="true", BEI_IDLE_UNLOAD="60"))
    assert [(of.lazy, of.idle_unload) for of in found] == [(False, None), (True, 60)]
    assert [of.lazy for of in loaded(deployment("a"), deployment("b"), lazy=True)] == [True, True]
