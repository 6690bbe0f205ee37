"""text-embeddings-router: every flag of TEI 1.9, by its name and variable, with TEI's default."""

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bei import __version__, launch, router
from bei.errors import SetupError
from bei.metrics import Metrics, port
from bei.settings import Settings
from tests.support.configs import tiny_config

TEI_FLAGS = """
    model-id revision tokenization-workers dtype served-model-name pooling max-concurrent-requests max-batch-tokens
    max-batch-requests max-client-batch-size auto-truncate default-prompt-name default-prompt dense-path hf-api-token
    hf-token hostname port uds-path huggingface-hub-cache payload-limit api-key json-output disable-spans
    otlp-endpoint otlp-service-name prometheus-port cors-allow-origin
"""
DEFAULTS = {
    "host": "0.0.0.0",
    "port": 3000,
    "max_concurrent_requests": 512,
    "max_num_tokens": 16384,
    "max_client_batch_size": 32,
    "auto_truncate": True,
    "payload_limit": 2_000_000,
    "rerank_order": "score",
    "cors_allow_origin": ("*",),
    "api_key": (),
    "json_output": False,
    "otlp_service_name": "text-embeddings-inference.server",
    "uds_path": None,
}
GIVEN = {
    "revision": ("abc", "revision", "abc"),
    "tokenization-workers": ("3", "tokenization_workers", 3),
    "dtype": ("bfloat16", "precision", "bf16"),
    "served-model-name": ("m", "served_model_name", "m"),
    "pooling": ("last-token", "pooling", "last"),
    "max-concurrent-requests": ("7", "max_concurrent_requests", 7),
    "max-batch-tokens": ("100", "max_num_tokens", 100),
    "max-batch-requests": ("9", "max_batch_size", 9),
    "max-client-batch-size": ("11", "max_client_batch_size", 11),
    "auto-truncate": ("false", "auto_truncate", False),
    "default-prompt-name": ("query", "default_prompt_name", "query"),
    "default-prompt": ("query: ", "default_prompt", "query: "),
    "hostname": ("127.0.0.1", "host", "127.0.0.1"),
    "port": ("1234", "port", 1234),
    "huggingface-hub-cache": ("/data", "hub_cache", Path("/data")),
    "payload-limit": ("5", "payload_limit", 5),
    "otlp-service-name": ("s", "otlp_service_name", "s"),
    "cors-allow-origin": ("https://a.example", "cors_allow_origin", ("https://a.example",)),
}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(*flags, **environment): how it ended, and the settings that it would serve."""
    served: list[Settings] = []
    ports: list[int] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("bei"), "level", logging.getLogger("bei").level)  # to have it back
    monkeypatch.setattr(launch, "serve", lambda models, read, ahead, show: (show(Metrics()), served.extend(models)))
    monkeypatch.setattr(port, "listen", lambda metrics, host, number: ports.append(number))

    def run(*flags: str, **environment: str) -> tuple[Result, Settings | None, list[int]]:
        served.clear()
        ports.clear()
        unset = dict.fromkeys((*(flag.upper().replace("-", "_") for flag in TEI_FLAGS.split()), "LOG_LEVEL"), None)
        result = CliRunner().invoke(
            router.text_embeddings_router, ["--model-id", "./m", *flags], env=unset | environment
        )
        return result, served[0] if served else None, list(ports)

    return run


def test_every_flag_of_tei_is_there_by_its_name_and_variable():
    options = {name: option for option in router.text_embeddings_router.params for name in option.opts}
    for flag in TEI_FLAGS.split():
        assert options[f"--{flag}"].envvar == flag.upper().replace("-", "_"), flag
    assert "-p" in options


def test_there_is_no_other_flag_and_each_is_for_one_setting():
    names = [*(flag.name for flag in router.FLAGS), *router.OTHER_FLAGS, *router.WITHOUT_EFFECT]
    assert sorted(names) == sorted([*TEI_FLAGS.split(), "allowed-host"])
    assert {flag.setting for flag in router.FLAGS} | router.UNASKED.keys() <= Settings.model_fields.keys()
    assert len({flag.setting for flag in router.FLAGS}) == len(router.FLAGS)


def test_help_says_what_a_setting_is_and_teis_default():
    options = {option.name: option for option in router.text_embeddings_router.params}
    assert options["port"].help == "The port to listen on. 0 takes a free one.  [default: 3000]"
    for flag in router.FLAGS:
        assert options[flag.setting].help.startswith(Settings.model_fields[flag.setting].description)
        assert flag.default is None or options[flag.setting].help.endswith(f"  [default: {flag.default}]")


def test_teis_defaults(start):
    result, settings, ports = start()
    assert result.exit_code == 0, result.output
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    assert ports == [9000]


@pytest.mark.parametrize("flag", GIVEN)
def test_a_flag_and_its_variable_say_the_same(start, flag):
    value, name, found = GIVEN[flag]
    assert getattr(start(f"--{flag}", value)[1], name) == found
    assert getattr(start(**{flag.upper().replace("-", "_"): value})[1], name) == found


def test_the_arguments_of_teis_image(start):
    """Its command is --json-output. Docker sets HOSTNAME to the container's name, with which TEI listens everywhere."""
    result, settings, _ = start("--json-output", PORT="80", HOSTNAME="3f2a9c1b7d10", HUGGINGFACE_HUB_CACHE="/data")
    assert result.exit_code == 0, result.output
    assert (settings.host, settings.port, settings.json_output) == ("0.0.0.0", 80, True)
    assert settings.hub_cache == Path("/data")
    assert start("--hostname", "my-host", HOSTNAME="3f2a9c1b7d10")[1].host == "my-host"
    assert start(HOSTNAME="::1")[1].host == "::1"


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(start, flag):
    assert start(flag)[0].output == f"text-embeddings-router {__version__}\n"


@pytest.mark.parametrize(
    ("asked", "level", "told"),
    [
        ("trace", "DEBUG", None),
        ("OFF", "CRITICAL", None),
        ("warn", "WARNING", None),
        ("", "INFO", None),
        ("info,text_embeddings_router=debug", "INFO", "text_embeddings_router=debug"),
        ("hyper=off, debug ,x[y]", "DEBUG", "hyper=off,x[y]"),
        ("verbose", "INFO", "verbose"),
    ],
)
def test_filters_of_the_log(start, caplog, asked, level, told):
    result, _, _ = start(LOG_LEVEL=asked)
    assert (result.exit_code, logging.getLevelName(logging.getLogger("bei").level)) == (0, level)
    lines = [f"LOG_LEVEL: {told} has no effect here; the level is {level.lower()}"] if told else []
    assert [line for line in caplog.messages if line.startswith("LOG_LEVEL")] == lines


def test_our_variables_go_before_teis_defaults_and_flags_before_both(start):
    ours = {
        "BEI_RERANK_ORDER": "input",
        "BEI_MAX_CLIENT_BATCH_SIZE": "77",
        "BEI_CORS_ALLOW_ORIGIN": "https://b.example",
    }
    _, settings, _ = start(**ours)
    assert (settings.rerank_order, settings.max_client_batch_size) == ("input", 77)
    assert settings.cors_allow_origin == ("https://b.example",)
    assert start("--max-client-batch-size", "5", **ours)[1].max_client_batch_size == 5


def test_the_rest_of_teis_flags(start):
    for flag in ("--hf-token", "--hf-api-token"):
        assert start(flag, "t")[1].credential.get_secret_value() == "t"
    assert start("--api-key", "k")[1].api_key[0].get_secret_value() == "k"
    assert start("--json-output")[1].json_output is True
    assert start("-p", "99")[1].port == 99
    many = ("--cors-allow-origin", "https://a.example", "--cors-allow-origin", "https://b.example")
    assert start(*many)[1].cors_allow_origin == ("https://a.example", "https://b.example")
    assert start("--dense-path", "2_Dense")[0].exit_code == 0
    assert start("--prometheus-port", "9")[2] == [9]
    assert start("--prometheus-port", "0")[2] == []
    assert start(BEI_PROTECT_ALL="true", BEI_API_KEY="k")[2] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--dense-path", "2_Dense_256"),
            "--dense-path 2_Dense_256: the Dense module is the one that modules.json names",
        ),
        (("--hf-token", "a", "--hf-api-token", "b"), "--hf-api-token is the older name of --hf-token; set one of them"),
        (("--default-prompt", "a", "--default-prompt-name", "b"), "default_prompt and default_prompt_name: set one of"),
        (("--cors-allow-origin", "a.example"), "setting cors_allow_origin: an origin is such as https://example.com"),
    ],
)
def test_what_cannot_be_is_refused_by_name(start, flags, message):
    result, settings, _ = start(*flags)
    assert (result.exit_code, settings) == (2, None)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [("--uds-path", "/tmp/x"), ("--disable-spans",)])
def test_flags_without_effect_are_told_of(start, caplog, flags):
    _, settings, _ = start(*flags)
    assert settings.uds_path is None
    assert any(f"{flags[0]} is without effect here" in message for message in caplog.messages)


def test_a_port_of_metrics_that_is_taken_ends_only_a_start_that_asked_for_it(start, monkeypatch, caplog):
    def taken(metrics, host, number):
        raise SetupError(f"cannot serve metrics on {host}:{number}")

    monkeypatch.setattr(port, "listen", taken)
    result, settings, _ = start()
    assert (result.exit_code, settings is None) == (0, False)
    assert any("cannot serve metrics on 0.0.0.0:9000" in message for message in caplog.messages)
    assert start("--prometheus-port", "9000")[0].exit_code == 2


def test_several_models(start, monkeypatch):
    """Each --model-id is a model; MODEL_ID has commas between them."""
    served: list[Settings] = []
    monkeypatch.setattr(launch, "serve", lambda models, *others: served.extend(models))
    start("--model-id", "BAAI/b", "--max-batch-tokens", "99")
    assert [(of.source, of.repo, of.max_num_tokens) for of in served] == [("LOCAL", "./m", 99), ("HF", "BAAI/b", 99)]
    served.clear()
    CliRunner().invoke(router.text_embeddings_router, [], env={"MODEL_ID": "BAAI/b,./my model"})
    assert [(of.source, of.repo) for of in served] == [("HF", "BAAI/b"), ("LOCAL", "./my model")]
    result, _, _ = start("--model-id", "b", "--pooling", "cls")
    assert "--pooling is about one model, and 2 are served" in result.stderr


def test_without_a_model_the_configs_are_read_as_for_bei_serve(tmp_path, start, monkeypatch):
    """BEI_CONFIG names several files, and a file lists several models."""
    served: list[Settings] = []
    monkeypatch.setattr(launch, "serve", lambda models, *others: served.extend(models))

    def found(*flags: str, **environment: str) -> list[str]:
        served.clear()
        result = CliRunner().invoke(router.text_embeddings_router, flags, env={"MODEL_ID": None} | environment)
        return [of.repo for of in served] or result.stderr

    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(tiny_config(name)))
    blocks = [tiny_config(name)["trt_llm"] for name in ("c", "d")]
    (tmp_path / "config.yaml").write_text(json.dumps({"model_metadata": {"models": blocks}}))
    assert found() == ["c", "d"]
    assert found(BEI_CONFIG="a.yaml:b.yaml") == ["a", "b"]
    assert found("--model-id", "./m", BEI_CONFIG="a.yaml") == ["./m"]
    refused = found("--model-id", "./m", BEI_CONFIG="a.yaml:b.yaml")
    assert "this is about one model, and 2 are listed (a.yaml, b.yaml)" in refused
