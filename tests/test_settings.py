"""Settings come from the block, then the environment, then flags; an error is one line."""

import inspect
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from bei.errors import SetupError
from bei.settings import (
    LifeSettings,
    LimitSettings,
    ModelSettings,
    ObservationSettings,
    ServerSettings,
    Settings,
    SourceSettings,
    block,
)
from bei.settings.reference import settings_of
from tests.support.configs import tiny_config

ROOT = Path(__file__).parents[1]


def load(config=None, environ=None, **flags) -> Settings:
    return Settings.load(tiny_config() if config is None else config, environ=environ or {}, **flags)


def changed(path: str, value) -> dict:
    config = tiny_config()
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return config


@given(st.from_regex(block._PLAIN_ID, fullmatch=True))
def test_the_hub_takes_a_plain_id(repo):
    """The hub's library, which judges the others, is not imported for such an id."""
    validate_repo_id(repo)


def test_the_default_config():
    settings = Settings.from_file(ROOT / "config.yaml", environ={})
    assert (settings.source, settings.repo) == ("HF", "sentence-transformers/all-MiniLM-L6-v2")
    assert (settings.route, settings.max_num_tokens, settings.base_model) == ("/v1/embeddings", 16384, "encoder_bert")
    assert settings.served_model_name == settings.repo


def test_the_last_one_wins():
    config = changed("trt_llm.build.max_num_tokens", 1000)
    assert load(config).max_num_tokens == 1000
    assert load(config, {"BEI_MAX_NUM_TOKENS": "2000"}).max_num_tokens == 2000
    assert load(config, {"BEI_MAX_NUM_TOKENS": "2000"}, max_num_tokens=3000).max_num_tokens == 3000
    assert load(config, {"BEI_MAX_NUM_TOKENS": "2000"}, max_num_tokens=None).max_num_tokens == 2000


def test_the_block_may_stand_under_model_metadata():
    assert load({"model_metadata": tiny_config()}).repo == "tiny"


def test_encoders_have_truss_own_defaults():
    assert load().max_num_tokens == 8192
    assert load(changed("trt_llm.build.base_model", "encoder")).max_num_tokens == 16384


def test_names_and_secrets():
    assert load(changed("trt_llm.runtime.served_model_name", "mine")).served_model_name == "mine"
    assert load(environ={"BEI_SERVED_MODEL_NAME": "yours"}).served_model_name == "yours"
    secret = Settings.load(tiny_config(), secrets={"hf_access_token": "s1"}, environ={"HF_TOKEN": "s2"}).credential
    assert secret.get_secret_value() == "s1"
    assert "s1" not in repr(secret)
    assert load(environ={"TRUSS_SECRET_hf_access_token": "s3"}).credential.get_secret_value() == "s3"
    assert load(environ={"HF_TOKEN": "s2"}).credential.get_secret_value() == "s2"
    assert load().credential is None


@pytest.mark.parametrize(
    ("config", "environ", "message"),
    [
        ({}, {}, "config.yaml has no `trt_llm` block"),
        (changed("trt_llm.build.max_num_tokens", 64), {}, "trt_llm.build.max_num_tokens: .*greater than 64, not 64"),
        (changed("trt_llm.build.base_model", "bert"), {}, "trt_llm.build.base_model: .*'encoder_bert'.*, not 'bert'"),
        (changed("trt_llm.build.base_model", "decoder"), {}, "`decoder` generates text; to embed, set `encoder_bert`"),
        (changed("trt_llm.build.base_model", "llama"), {}, "llama has been renamed to `decoder`"),
        (
            {"trt_llm": {"build": {"checkpoint_repository": {"source": "LOCAL", "repo": "tiny"}}}},
            {},
            r"trt_llm.build.base_model is missing: set `encoder_bert` \(BERT .*\) or `encoder` \(language models",
        ),
        (changed("trt_llm.build.max_tokens", 1), {}, "build.max_tokens: .*did you mean trt_llm.build.max_num_tokens?"),
        (changed("trt_llm.buidl", {}), {}, "trt_llm.buidl: no such key; did you mean trt_llm.build?"),
        (changed("trt_llm.x", 1), {}, "trt_llm.x: no such key; keys are build, inference_stack, runtime, version_over"),
        (
            changed("trt_llm.runtime.webserver_route", "/predict"),
            {},
            "webserver_route: no such key; did you mean trt_llm.runtime.webserver_default_route?",
        ),
        (
            changed("trt_llm.build.webserver_default_route", "/predict"),
            {},
            "trt_llm.build.webserver_default_route: no such key; did you mean trt_llm.runtime.webserver_default_route?",
        ),
        (
            changed("trt_llm.build.checkpoint_repository.revison", "main"),
            {},
            "checkpoint_repository.revison: no such key; did you mean trt_llm.build.checkpoint_repository.revision?",
        ),
        (changed("trt_llm.build.quantization_config.calib", 1), {}, "quantization_config.calib: no such key; did you"),
        (
            changed("trt_llm.build.lora_adapters", {"a": {"source": "HF", "repo": "a/b"}}),
            {},
            "trt_llm.build.lora_adapters: adapters of a request are for generating models",
        ),
        (
            changed("trt_llm.build.speculator", {"speculative_decoding_mode": "LOOKAHEAD_DECODING"}),
            {},
            "trt_llm.build.speculator: speculation is for generating models; remove the key",
        ),
        (changed("trt_llm.build.quantization_type", "fp8"), {}, "`encoder_bert` is served in 16 bits; set no_quant"),
        (changed("trt_llm.build.checkpoint_repository.source", "hf"), {}, "checkpoint_repository.source: .*'HF'"),
        (changed("trt_llm.inference_stack", "v2"), {}, "trt_llm.inference_stack: .*'v1', not 'v2'"),
        (changed("trt_llm.runtime.webserver_default_route", "/v1/systemone"), {}, "setting route: .*'/v1/systemone'"),
        (tiny_config(), {"BEI_PORT": "http"}, "setting port: .*integer.*, not 'http'"),
        (
            tiny_config(),
            {"BEI_PROT": "80"},
            "environment variable BEI_PROT is not a setting; did you mean BEI_PORT",
        ),
        (tiny_config(), {"BEI_QQ": "80"}, "BEI_QQ is not a setting; `bei serve --help` lists them"),
        ({"trt_llm": None, "model_metadata": ["x"]}, {}, r"`model_metadata` must be a mapping, not \['x'\]$"),
        ({**tiny_config(), "resources": "L4"}, {}, "config.yaml: `resources` must be a mapping, not 'L4'"),
        (
            {**tiny_config(), "resources": {"accelerator": 1}},
            {},
            "`resources.accelerator` must be text such as `L4`, not 1$",
        ),
        (tiny_config(), {"BEI_ENGINE": "cuda"}, "setting engine: .*'torch'.*, not 'cuda'"),
    ],
)
def test_what_is_wrong_is_one_line(config, environ, message):
    with pytest.raises(SetupError, match=message) as caught:
        load(config, environ)
    assert "\n" not in str(caught.value)


WRONG_FILES = [
    ("a: [", "is not YAML"),
    ("[" * 5000, "is not YAML"),
    ("a: 2001-99-99", "is not YAML"),
    ("a: 0x" + "f" * 9000 + "\nb: 1" + "0" * 9000, "is not YAML"),
    ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
    ("- a", "holds no mapping"),
    ("", "holds no mapping"),
]


def test_what_a_file_of_aliases_expands_to_is_not_quoted(tmp_path):
    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "trt_llm: {build: {max_num_tokens: *i}}"]))
    with pytest.raises(SetupError, match=r"trt_llm\.build\.max_num_tokens: .*integer") as caught:
        Settings.from_file(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 400


def test_files(tmp_path):
    with pytest.raises(SetupError, match="No such file"):
        Settings.from_file(tmp_path / "absent.yaml")
    for content, message in WRONG_FILES:
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(SetupError, match=message) as caught:
            Settings.from_file(tmp_path / "config.yaml")
        assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config()))
    assert Settings.from_file(tmp_path / "config.yaml", environ={}, port=1).port == 1


SETTINGS = settings_of(Settings)
FROM_ELSEWHERE = {"credential", "without_effect"}  # a secret, and a finding


def test_every_field_is_a_setting_with_help_but_for_those_from_elsewhere():
    assert {setting.name for setting in SETTINGS} == Settings.model_fields.keys() - FROM_ELSEWHERE
    for setting in SETTINGS:
        assert re.fullmatch(r"[A-Z/].*\.", setting.help), setting


def test_every_setting_is_in_one_group():
    groups = (SourceSettings, ModelSettings, LifeSettings, ServerSettings, LimitSettings, ObservationSettings)
    declared = [name for group in groups for name in inspect.get_annotations(group) if name != "model_config"]
    assert sorted(declared) == sorted(Settings.model_fields.keys() - {"without_effect"})


def test_a_new_declaration_is_a_setting():
    class More(Settings):
        """More."""

        dummy_size: int = Field(3, ge=1, description="Dummies.")

    (found,) = (setting for setting in settings_of(More) if setting.name == "dummy_size")
    assert (found.flag, found.variable) == ("--dummy-size", "BEI_DUMMY_SIZE")
    assert (found.values, found.bounds, found.default) == ("INTEGER", ", at least 1", "3")
    assert More.load(tiny_config(), environ={"BEI_DUMMY_SIZE": "4"}).dummy_size == 4
    with pytest.raises(SetupError, match=r"setting dummy_size: .*greater than or equal to 1, not '0'"):
        More.load(tiny_config(), environ={"BEI_DUMMY_SIZE": "0"})


def test_defaults_as_a_user_writes_them():
    shown = {setting.name: setting.default for setting in SETTINGS}
    assert (shown["port"], shown["protect_all"], shown["cache_dir"]) == ("8080", "false", "~/.cache/bei")
    assert (shown["max_batch_size"], shown["calib_dataset"]) == ("256", "abisee/cnn_dailymail")  # of config.yaml's keys
    assert (shown["repo"], shown["threads"], shown["api_key"], shown["base_model"]) == (None,) * 4


@pytest.mark.parametrize(
    ("given", "count"),
    [("5", 5), ("2GB", 2 * 10**9), ("1.5 gb", 1_500_000_000), ("512MiB", 1 << 29), ("3k", 3000), ("7 B", 7)],
)
def test_a_number_of_bytes_may_have_a_unit(given, count):
    named = ("memory_budget", "max_bytes_in_flight", "payload_limit", "max_download_bytes")
    settings = Settings.load(tiny_config(), environ={f"BEI_{name.upper()}": given for name in named})
    assert {getattr(settings, name) for name in named} == {count}


@pytest.mark.parametrize("given", ["2 apples", "GB", "1.5", "-1", "", "2iB", "1" * 30])
def test_other_numbers_of_bytes_are_refused(given):
    with pytest.raises(
        SetupError, match=r"setting memory_budget: a number of bytes is such as 2000000000, 2GB or 512MiB"
    ):
        Settings.load(tiny_config(), environ={"BEI_MEMORY_BUDGET": given})


def test_an_infinite_limit_reaches_other_processes():
    settings = load(environ={"BEI_MAX_QUEUE_SECONDS": "inf"})
    assert settings.max_queue_seconds == float("inf")
    assert Settings.model_validate_json(settings.redacted().model_dump_json()) == settings.redacted()
