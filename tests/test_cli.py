"""The commands as a shell sees them."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import httpx
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from pydantic import Field

from bei import cli, launch, options, router
from bei.architectures import families
from bei.serving.routes import ROUTES
from bei.serving.service import Service
from bei.settings import ModelSettings, Settings
from bei.settings.reference import settings_of
from tests.support.configs import tiny_config
from tests.support.servers import free_port, wait_until_ready
from tests.support.tiny_models import random_model, save

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path, tiny_folder) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    return file


def run(*arguments: str, **environment: str):
    return CliRunner().invoke(cli.main, list(arguments), env=environment)


CONTEXT = click.Context(cli.main)
COMMANDS = cli.main.list_commands(CONTEXT)


def test_help_has_every_command_with_its_whole_sentence():
    result = run("--help")
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    for name in COMMANDS:
        sentence = re.match(r".*?[.](?=\s|$)", " ".join(cli.main.get_command(CONTEXT, name).help.split()))[0]
        assert f"{name} {sentence}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_the_command_takes(name):
    command = cli.main.get_command(CONTEXT, name)
    shown = run(name, "--help").output
    for example in command.examples:
        assert f"  {example}\n" in shown
        bei, named, *words = shlex.split(example.partition(" > ")[0])
        assert (bei, named) == ("bei", name)
        command.make_context(name, words).close()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serv"], "No such command 'serv'. Did you mean 'serve'?"),
        (["buld"], "No such command 'buld'. Did you mean 'build'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["owner/name"], "owner/name is a model, no command; serve it with: bei serve owner/name"),
        (["FOLDER"], "FOLDER is a model, no command; serve it with: bei serve FOLDER"),
        (["my.yaml"], "my.yaml is a config, no command; serve it with: bei serve --config my.yaml"),
        (["serve", "--model", "owner/name"], "--model: the model has no flag here: bei serve owner/name"),
        (["info", "--model-id=owner/name"], "--model-id: the model has no flag here: bei info owner/name"),
        (["build", "--modle"], "--modle: the model has no flag here: bei build MODEL"),
        (["--model-id", "owner/name"], "No such option --model-id: a command comes first, such as `bei serve MODEL`."),
        (["--json-output", "--port", "80"], "a container runs it with --entrypoint text-embeddings-router"),
        (["--verison"], "No such option '--verison'. Did you mean '--version'?"),
        (["serve", "--prot", "1"], "No such option '--prot'. (Did you mean one of: '--port'"),
    ],
)
def test_what_is_no_command_is_told_with_the_one_that_works(tmp_path, monkeypatch, words, told):
    monkeypatch.setattr(cli.main, "commands", {})  # as in a new process: no command is imported yet
    result = run(*(word.replace("FOLDER", str(tmp_path)) for word in words))
    assert result.exit_code == 2
    assert told.replace("FOLDER", str(tmp_path)) in " ".join(result.stderr.split())


OWN = {"config", "log_level"}
MODELS = {"models"}


def test_every_flag_of_serve_is_a_setting():
    names = {parameter.name for parameter in cli.main.get_command(CONTEXT, "serve").params} - OWN - MODELS
    assert names == {setting.name for setting in settings_of(Settings)}


@pytest.mark.parametrize("command", ["embed", "info", "build"])
def test_every_setting_of_the_model_is_a_flag(command):
    names = {parameter.name for parameter in cli.main.get_command(CONTEXT, command).params}
    assert names >= {setting.name for setting in settings_of(ModelSettings)} | OWN


def test_a_new_declaration_has_its_option():
    class More(ModelSettings):
        """More of it."""

        dummy_size: int = Field(3, ge=1, description="Dummies.")
        dummies: tuple[str, ...] = Field((), description="Names of them.")
        has_dummies: bool = Field(False, description="There are some.")

    @click.command(cls=options.Command, examples=())
    @options.of_settings(More)
    def command(**flags):
        click.echo(json.dumps({name: value for name, value in flags.items() if value is not None}))

    def given(*arguments: str) -> dict[str, object]:
        return json.loads(CliRunner().invoke(command, arguments).stdout)

    assert given() == {}
    assert given("--dummy-size", "4", "--no-has-dummies") == {"dummy_size": "4", "has_dummies": False}
    assert given("--dummies", "a", "--dummies", "b,c") == {"dummies": "a,b,c"}
    assert given("--dummies", "") == {"dummies": ""}, "what is given empty is refused, not dropped"
    shown = CliRunner().invoke(command, ["--help"]).stdout
    section = shown.partition("More of it:\n")[2]
    assert re.search(r"--dummy-size INTEGER +Dummies\.  \[default: 3\]\n", section)
    assert re.search(r"--dummies TEXT +Names of them\. Repeatable\.\n", section)
    assert "--has-dummies / --no-has-dummies" in section


def test_info(config):
    result = run("info", "--config", str(config), "--engine", "torch", "--precision", "fp32", "--json")
    facts = json.loads(result.stdout)
    assert facts["model"]["dimensions"] == 48
    assert (facts["engine"]["name"], facts["engine"]["reason"]) == ("torch", "as asked")
    assert facts["settings"]["max_num_tokens"] == 8192
    readable = yaml.safe_load(run("info", "--config", str(config), "--engine", "null").stdout)
    assert readable["engine"]["name"] == "null"


def test_info_says_which_way_set_a_value_and_the_license_of_the_card(config, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    content = tiny_config(folder) | {"environment_variables": {"BEI_PRECISION": "fp32", "BEI_THREADS": "1"}}
    config.write_text(yaml.safe_dump(content))
    flags = ("--config", str(config), "--engine", "native", "--json")
    for card, expected in (
        ("---\nlicense: mit\n---\n# A model\n", "mit"),
        ("# A model\n", None),
        ("---\n[\n---\n", None),
    ):
        (folder / "README.md").write_text(card)
        facts = json.loads(run("info", *flags, BEI_THREADS="2", BEI_ENGINE="torch").stdout)
        assert facts["model"]["license"] == expected
    assert facts["set_by"] == {
        "flag": ["engine"],
        "environment": ["threads"],
        "config": ["base_model", "precision", "repo", "source"],
    }
    assert 100_000 < facts["engine"]["memory_bytes"] < 1e9


def test_info_names_each_device(config):
    found = sorted(os.sched_getaffinity(0))
    each = [f"cpu:{number}" for number in found]
    result = run("info", "--config", str(config), "--engine", "null", "--devices", ",".join(each), "--json")
    facts = json.loads(result.stdout)
    assert facts["engine"]["devices"] == each
    assert facts["settings"]["devices"] == ",".join(each)


def test_keys_without_effect_are_told_of(config, caplog):
    content = yaml.safe_load(config.read_text())
    content["trt_llm"]["build"] |= {"num_builder_gpus": 4, "max_seq_len": 33}
    config.write_text(yaml.safe_dump(content))
    result = run("info", "--config", str(config), "--engine", "null", "--json")
    assert "trt_llm: without effect here: build.num_builder_gpus" in caplog.messages
    facts = json.loads(result.stdout)
    assert (facts["settings"]["without_effect"], facts["model"]["max_tokens"]) == (["build.num_builder_gpus"], 33)


def test_more_than_the_model_reads_is_told_of(config, caplog):
    for asked, told in ((33, []), (99_999, ["max_seq_len 99999: this model reads 64 tokens"])):
        content = yaml.safe_load(config.read_text())
        content["trt_llm"]["build"] |= {"max_seq_len": asked}
        config.write_text(yaml.safe_dump(content))
        caplog.clear()
        run("info", "--config", str(config), "--engine", "null", "--json")
        assert [line for line in caplog.messages if "max_seq_len" in line] == told


def test_what_build_makes_is_what_serve_maps(config, tmp_path):
    flags = ["--config", str(config), "--engine", "native", "--cache-dir", str(tmp_path)]
    result = run("build", *flags)
    assert result.exit_code == 0
    assert "runs on native" in result.stdout
    made = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "native").iterdir()}
    assert run("info", *flags).exit_code == 0
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "native").iterdir()} == made


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["info", "--config", "absent.yaml"], {}, "absent.yaml: No such file"),
        (["info"], {"BEI_CONFIG": "elsewhere.yaml"}, "elsewhere.yaml: No such file"),
        (["info", "--config", "CONFIG", "--engine", "cuda"], {}, "setting engine"),
        (["serve", "--config", "CONFIG", "--port", "http"], {}, "setting port: Input should be a valid integer"),
        (["serve", "--config", "CONFIG", "--api-key", ""], {}, "setting api_key: a key is printable ASCII"),
        (["serve", "--config", "CONFIG", "--allowed-host", ""], {}, "setting allowed_host.0: String should match"),
        (
            ["info", "--config", "CONFIG", "--precision", "fp16"],
            {},
            "fp16 needs a GPU; on a CPU use bf16, fp32, int8 or int4",
        ),
        (["serve", "--config", "CONFIG", "--host", "256.0.0.1"], {}, "cannot listen on 256.0.0.1:8080"),
        (["serve", "--config", "CONFIG", "--log-level", "loud"], {}, "--log-level 'loud'"),
        (["info", "--config", "CONFIG", "--engine", "natve"], {}, "not 'natve'; did you mean native?"),
        (["serve", "--config", "/"], {}, "/ is a folder, no config; serve a model's folder without the flag: /"),
        (["info", "--config", "CONFIG"], {"BEI_TYPO": "1"}, "BEI_TYPO is not a setting; `bei serve --help` lists them"),
        (["info", "--config", "CONFIG"], {"BEI_APIKEY": "1"}, "BEI_APIKEY is not a setting; did you mean BEI_API_KEY?"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(config, arguments, environment, message):
    result = run(*[str(config) if a == "CONFIG" else a for a in arguments], **environment)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("bei: ")
    assert result.stderr.count("\n") == 1


def imported(code: str) -> set[str]:
    """The modules that an interpreter has imported after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, env=with_path(), stdout=subprocess.PIPE, check=True, text=True).stdout.split())


OF_FEW_STARTS = {
    *("torch", "transformers", "huggingface_hub", "httpx", "httpx2", "fsspec", "h2"),
    *("bei.checkpoint.hub", "bei.checkpoint.vocabulary", "bei.checkpoint.torch_files", "bei.checkpoint.convert"),
}


def test_a_start_imports_what_it_needs():
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    settings = f"from bei.settings import Settings; Settings.load({config!r})"
    assert not OF_FEW_STARTS & imported(f"import bei.cli; {settings}")
    assert not {*OF_FEW_STARTS, "yaml"} & imported("import bei.engines.child, bei.engines.native.engine")


def test_a_family_is_imported_when_it_is_read():
    files = {place.partition(":")[0] for place in families._PLACES.values()}
    assert not files & imported("import bei.cli, bei.engines.child")
    read = "from bei.architectures import families; families.family({'model_type': 'bert'})"
    assert files & imported(read) == {"bei.architectures.bert"}


def with_path(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "packages"), "HF_HUB_OFFLINE": "1", **more}


@pytest.mark.parametrize(
    ("head", "flags", "task"),
    [("ForSequenceClassification", [], "classifier"), ("ForMaskedLM", ["--pooling", "splade"], "sparse")],
)
def test_another_model_than_the_bundle_s_has_its_own_route(tmp_path, monkeypatch, head, flags, task):
    model = save(tmp_path / "model", random_model("bert", 0, head, id2label={0: "a", 1: "b", 2: "c"}), pooling=None)
    served = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch, "serve", lambda models, *others: served.extend(models))
    result = CliRunner().invoke(router.text_embeddings_router, ["--model-id", str(model), *flags])
    assert result.exit_code == 0, result.output
    (settings,) = served
    service = Service(settings)
    service.load()
    service.close()
    assert (service.model.checkpoint.task, service.model.route) == (task, ROUTES[task][0])


TRUSS_ENCODER = (
    "--max-batch-requests 32 --max-batch-tokens 16384 --max-client-batch-size 128 --max-concurrent-requests 2048"
)
ROUTER = "import sys; from bei.router import text_embeddings_router as r; r(sys.argv[1:])"


@pytest.mark.parametrize(
    ("flags", "in_bundle"),
    [
        (TRUSS_ENCODER, True),
        (f"--model-id FOLDER {TRUSS_ENCODER} --auto-truncate", False),
        ("--model-id FOLDER --auto-truncate false --dtype float32 --json-output --prometheus-port PORT", True),
    ],
)
def test_text_embeddings_router_starts_with_the_flags_that_truss_generates(
    config, tmp_path, tiny_folder, flags, in_bundle
):
    port, metrics_port = free_port(), free_port()
    words = [{"FOLDER": str(tiny_folder), "PORT": str(metrics_port)}.get(word, word) for word in flags.split()]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", ROUTER, "--hostname", "127.0.0.1", "--port", str(port), *words],
            cwd=config.parent if in_bundle else "/",
            env=with_path(BEI_ENGINE="null"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        info = httpx.get(f"http://127.0.0.1:{port}/info").json()
        assert info["max_client_batch_size"] == (128 if "128" in flags else 32)
        assert info["max_batch_tokens"] == 16384
        assert info["auto_truncate"] == ("false" not in flags)
        if "--json-output" in flags:
            messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
            assert messages[-1].endswith(f" is served on http://127.0.0.1:{port}")
            assert (
                httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text.count(
                    f'\nbei_ready{{model="{info["served_model_name"]}"}} 1.0\n'
                )
                == 1
            )
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_an_ipv6_address_is_listened_on_and_written_in_brackets(tmp_path, tiny_folder):
    port, metrics_port, log = free_port(), free_port(), tmp_path / "log"
    flags = ["--model-id", str(tiny_folder), "--prometheus-port", str(metrics_port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", ROUTER, "--hostname", "::1", "--port", str(port), *flags],
            env=with_path(BEI_ENGINE="null"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(f"http://[::1]:{port}", process, log)
        assert f"listening http://[::1]:{port} (" in log.read_text()
        assert f"curl -s [::1]:{port}/v1/embeddings" in log.read_text()
        assert httpx.get(f"http://[::1]:{metrics_port}/metrics").status_code == 200
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_text_embeddings_router_needs_to_know_what_to_serve(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ROUTER], cwd=tmp_path, env=with_path(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "bei: neither --model-id nor a config.yaml says what to serve\n"


def test_build_measures_the_ranges_that_serve_reads(tmp_path):
    """Over every text of the file, in several requests."""
    config, texts, file = tmp_path / "config.yaml", tmp_path / "texts.jsonl", tmp_path / "ranges.npy"
    model = save(tmp_path / "model", random_model("bert"))
    config.write_text(yaml.safe_dump(tiny_config(model)))
    lines = ["the cat", "a big dog ran", "it was red and blue"]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    flags = ["--config", str(config), "--engine", "native", "--cache-dir", str(tmp_path), "--int8-ranges", str(file)]
    result = run("build", *flags, "--calibrate", str(texts), BEI_MAX_CLIENT_BATCH_SIZE="2")
    assert (result.exit_code, f"{file}: the ranges of {texts}" in result.stdout) == (0, True), result.stderr
    service = Service(Settings.from_file(config, int8_ranges=file, cache_dir=tmp_path))
    service.load()
    try:
        rows = asyncio.run(service.model.embed(lines)).rows
        np.testing.assert_allclose(np.load(file), [rows.min(0), rows.max(0)], atol=1e-2)
        np.testing.assert_array_equal(service.model.int8_ranges, np.load(file))
    finally:
        service.close()


@pytest.mark.parametrize(
    ("flags", "content", "message"),
    [
        ([], "a", "--calibrate needs --int8-ranges, the file that it writes"),
        (["--int8-ranges", "R"], "\n\n", "no text in it"),
        (["--int8-ranges", "R"], None, "No such file"),
        (["--int8-ranges", "no/folder/r.npy"], "the cat", "int8_ranges no/folder/r.npy cannot be written"),
        (["--int8-ranges", "R", "--no-auto-truncate"], "the cat " * 99, "must have at most 64 tokens"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_status_2(tmp_path, config, flags, content, message):
    texts = tmp_path / "texts.txt"
    if content is not None:
        texts.write_text(content)
    flags = [str(tmp_path / "r.npy") if flag == "R" else flag for flag in flags]
    result = run("build", "--config", str(config), "--engine", "null", "--calibrate", str(texts), *flags)
    assert (result.exit_code, message in result.stderr, len(result.stderr.splitlines())) == (2, True, 1), result.stderr
    assert not (tmp_path / "r.npy").exists()


def test_a_level_that_there_is_not_is_refused_before_anything_is_built(config):
    result = run("build", "--config", str(config), "--engine", "null", "--plans-for", "avx2,avx3")
    assert result.exit_code == 2
    assert result.stderr.startswith("bei: there is no level 'avx3'; there are amx, ")
