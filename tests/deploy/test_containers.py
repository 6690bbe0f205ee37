"""Dockerfiles and the compose file. No daemon builds them here: their files are looked up, and their commands run."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatch

import pytest
import yaml

from bei import api
from bei.engines.native import prebuilt
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.containers import DEPLOY, QUEUE_SECONDS, environment, given, instructions
from tests.support.deploy_tools import FETCHED
from tests.support.project import IMAGES, PROJECT
from tests.support.servers import ROOT, serving

DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]


def copied(name: str) -> list[str]:
    """The files from the repository."""
    words = (arguments.split() for arguments in given(name, "COPY") if not arguments.startswith("--from"))
    return [source for *sources, _ in words for source in sources]


@pytest.mark.parametrize(("name", "source"), [(name, source) for name in DOCKERFILES for source in copied(name)])
def test_what_is_copied_is_there_and_sent_to_the_builder(name, source):
    assert (ROOT / source).exists()
    rules = [line for line in (DEPLOY / f"{name}.dockerignore").read_text().splitlines() if not line.startswith("#")]
    verdicts = [not rule.startswith("!") for rule in rules if fnmatch(source, rule.lstrip("!"))]
    assert not verdicts[-1]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_builds_the_package_is_copied(name):
    (hook,) = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"].values()
    assert {"pyproject.toml", "packages", hook["path"]} <= set(copied(name))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_is_no_root_and_stops_by_the_signal_that_drains(name):
    users = given(name, "USER")
    assert users[-1] == "1000:1000"
    assert given(name, "STOPSIGNAL") == ["SIGTERM"]
    assert [json.loads(words) for words in (*given(name, "ENTRYPOINT"), *given(name, "CMD"))] == [["bei"], ["serve"]]
    assert all(
        image.startswith("python:3.11-slim") or image in ("base AS baked", "base AS serve")
        for image in given(name, "FROM")
    )


@pytest.mark.parametrize("name", DOCKERFILES)
def test_its_environment_is_settings(name):
    values = environment(name)
    ours = {key: value for key, value in values.items() if key.startswith("BEI_")}
    assert ours.pop("BEI_CONFIG") in [words.split()[-1] for words in given(name, "COPY")]
    settings = Settings.load(tiny_config(), environ=ours)
    assert (settings.host, str(settings.port)) == ("0.0.0.0", given(name, "EXPOSE")[0])
    assert values["HOME"] in (*given(name, "VOLUME"), "/baked")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_package_is_a_locked_one(name):
    """Everything that pip installs is hashed in a lock, or is bei itself, built from present files; no index is
    named."""
    ran = [command.strip() for line in given(name, "RUN") for command in line.split("&&")]
    pips = [command for command in ran if re.search(r"\b(pip|pip3|uv|conda|pipx|npm)\b", command)]
    assert [re.sub(r"^\S+/pip install --no-cache-dir ", "", command) for command in pips] == [
        "--require-hashes -r requirements.lock",
        "--no-index --no-deps --no-build-isolation .",
    ]
    (lock,) = [words.split()[0] for words in given(name, "COPY") if words.endswith("./requirements.lock")]
    assert lock in IMAGES


def test_the_image_for_processors_has_the_engine_and_no_compiler():
    """Triton of the image for GPUs compiles at run time."""
    install, *_, last = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")[1:]
    assert "g++" in install and f"python -m {prebuilt.__name__}\n" in install
    assert "apt-get" not in last and "g++" not in last


def test_the_image_for_processors_is_built_for_every_machine():
    """Its levels are those of the machine for which it is built, and no instruction names one."""
    (machine,) = (option for option in prebuilt.main.params if option.name == "machine")
    assert machine.default == platform.machine()
    named = re.compile(r"x86|amd64|aarch64|arm64", re.IGNORECASE)
    assert not [words for words in instructions("Dockerfile") if named.search(" ".join(words))]


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_folder) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    with serving("--engine", "null", log=folder / "log", config=folder / "config.yaml") as url:
        yield url


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_tells_a_ready_server_from_none(name, url):
    (check,) = given(name, "HEALTHCHECK")
    _, *command = json.loads(check.partition(" CMD ")[2])

    def status(port: str) -> int:
        return subprocess.run([sys.executable, *command], env={"BEI_PORT": port}, capture_output=True).returncode

    assert status(url.rpartition(":")[2]) == 0
    assert status("1") != 0
    assert ':{os.environ["BEI_PORT"]}/health/ready' in command[-1]
    assert "/health/ready" in {route.path for route in api.ROUTES}


def test_the_compose_file_mounts_what_is_there():
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
    ours = compose["services"]["bei"]
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).exists()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert {config["source"] for config in service.get("configs", [])} <= compose["configs"].keys()
    assert all(yaml.safe_load(config["content"]) for config in compose["configs"].values())


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("", ""),
        ("stop_grace_period:", "stop_grace_periods:"),
        ("65s", "65 minutes"),
        ('"8080:8080"', '"8080:x"'),
        ("source: dashboards", "source: dashboard"),
    ],
)
def test_the_compose_file_is_of_compose_s_specification(monkeypatch, written, wrong):
    monkeypatch.syspath_prepend(FETCHED.with_name("python"))
    spec = pytest.importorskip("compose_spec", reason="it was not fetched (make .venv-deploy/ok)")
    text = (DEPLOY / "docker-compose.yaml").read_text()
    assert written in text
    with nullcontext() if written == wrong else pytest.raises(ValueError):
        spec.PyCompose.from_yaml(text.replace(written, wrong)).validate()


def test_compose_runs_it_read_only_and_lets_it_drain():
    ours = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["bei"]
    assert ours["read_only"]
    assert {volume.split(":")[1] for volume in ours["volumes"]} >= set(given("Dockerfile", "VOLUME"))
    drain = float(ours["environment"]["BEI_DRAIN_SECONDS"])
    assert float(ours["stop_grace_period"].removesuffix("s")) > drain + QUEUE_SECONDS
    values = {key: value for key, value in ours["environment"].items() if key.startswith("BEI_") and value}
    Settings.load(tiny_config(), environ=values)
