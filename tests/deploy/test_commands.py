"""Every command of every page has a rule here: its program parses it, or runs it as far as that needs no cluster, no
daemon and no network."""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import yaml

from bei import __version__, api, cli
from bei.api.bodies import parse
from bei.errors import Error
from bei.router import text_embeddings_router
from bei.settings import Settings
from deploy import wheels
from tests.support import deploy_tools, load_generators
from tests.support.cluster import cluster
from tests.support.configs import tiny_config
from tests.support.containers import DEPLOY, given
from tests.support.documents import DOCUMENTS, FILES, Command, commands_of, text_of
from tests.support.load_generators import Words, options_of
from tests.support.project import EXTRAS
from tests.support.servers import ROOT

COMMANDS = list({command: None for name in DOCUMENTS for command in commands_of(text_of(name))})
ROUTES = {(route.method, route.path): route for route in api.ROUTES}
PATHS = {route.path for route in api.ROUTES}
MAKEFILE = (ROOT / "Makefile").read_text()
UNIT = DEPLOY / "systemd" / "bei.service"
SOURCES = "\n".join(text_of(name) for name in FILES if re.search(r"^(?!tests/).*\.(py|ya?ml)$|^Makefile$", name))
PROGRAMS_OF_THE_IMAGE = {"sh", "python", "bei"}
"""Debian's slim image lacks procps, and so `kill` and `ps`."""
PLATFORMS = {"Dockerfile": ("linux/amd64", "linux/arm64"), "Dockerfile.cuda": ("linux/amd64",)}
"""tests/test_lock.py holds that these have what an image installs."""
NO_DAEMON = {**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:1"}


def ran(tool: str, *words: str, cwd: Path = ROOT) -> str:
    done = deploy_tools.run(tool, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- ours ------------------------------------------------------------------------------------------------------------


def parsed(command: click.Command | None, words: Words, *, in_a_sentence: bool) -> None:
    """In a sentence an argument may be left out."""
    assert command is not None
    if words == ["COMMAND"]:
        return
    try:
        with command.make_context(command.name, list(words)):
            pass
    except click.exceptions.Exit as exc:
        assert exc.exit_code == 0
    except click.exceptions.NoArgsIsHelpError:
        assert in_a_sentence
    except click.MissingParameter:
        assert in_a_sentence
    except click.BadOptionUsage as exc:
        assert in_a_sentence, exc
        assert words[-1] == exc.option_name, "an option without its value ends the words"


def bei(words: Words, *, in_a_sentence: bool) -> None:
    name, *rest = words
    if name.startswith("-") or name.isupper():
        parsed(cli.main, [name] if name.startswith("-") else rest, in_a_sentence=in_a_sentence)
    else:
        command = cli.main.get_command(click.Context(cli.main), name)
        parsed(command, rest, in_a_sentence=in_a_sentence)


def python(words: Words) -> None:
    """tests/truss runs the code of `-c`, and Truss's server, which is in the context that the code makes."""
    if words[0] == "-c":
        ast.parse(words[1])
        assert [name for name in re.findall(r"'([^']+\.yaml)'", words[1]) if not (ROOT / name).exists()] == []
        return
    if words == ("server/main.py",):
        return
    found = options_of([word for word in words if word != "-P"][:2], m={"default": ""})
    assert found.m
    place = ROOT.joinpath(*found.m.split("."))
    if found.m == "pytest":
        files = [word for word in words if word.endswith(".py")]
        assert files and all((ROOT / name).exists() for name in files)
    elif found.m.startswith("bei."):
        assert (ROOT / "packages" / f"{found.m.replace('.', '/')}.py").exists()
    else:
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists()


def make(words: Words) -> None:
    for word in words:
        name, equals, _ = word.partition("=")
        found = rf"^{name} \?=" if equals else rf"^{re.escape(name)}:" + ("" if name.startswith(".venv") else ".*##")
        assert re.search(found, MAKEFILE, re.MULTILINE), word
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "bei serve --host"),  # where BEI_CONFIG counts
        (["CONFIG=a.yaml b.yaml"], "bei serve --config a.yaml --config b.yaml --host"),
    ],
)
def test_make_serve_names_a_config_where_its_user_does(words, told):
    done = subprocess.run(["make", "-n", "serve", *words], cwd=ROOT, capture_output=True, text=True)
    assert told in " ".join(done.stdout.split())


def curl(words: Words) -> None:
    """Its body has fields that the route reads, of their types."""
    found = options_of(words, "url", s={"action": "store_true"}, d={}, H={"action": "append"})
    url = urlsplit(found.url if "://" in found.url else f"http://{found.url}")
    route = ROUTES["GET" if found.d is None else "POST", url.path]
    if found.d is not None:
        unknown: set[str] = set()
        parse(route.adapter, found.d.encode(), unknown)
        assert unknown == set()


# -- containers ------------------------------------------------------------------------------------------------------


def dockerfiles() -> dict[str, str]:
    """By the tags of the images that the pages build."""
    built = [command.words[2:] for command in COMMANDS if command.words[:2] == ("docker", "build")]
    return {found.t: Path(found.f).name for found in map(build_options, built)}


def build_options(words: Words) -> argparse.Namespace:
    return options_of(words, "context", f={"required": True}, t={"required": True}, target={}, platform={})


def docker(words: Words) -> None:
    kind, *rest = words
    {"build": docker_build, "run": docker_run, "compose": docker_compose}[kind](rest)
    program = shutil.which("docker")
    if program is not None and kind != "compose":  # which is a plugin
        done = subprocess.run([program, *words], cwd=ROOT, env=NO_DAEMON, capture_output=True, text=True)
        assert "Cannot connect to the Docker daemon" in done.stderr, "it takes the options"


def docker_build(words: Words) -> None:
    found = build_options(words)
    assert (ROOT / found.context).resolve() == ROOT
    assert (ROOT / found.f).parent == DEPLOY
    stages = re.findall(r" AS (\w+)$", "\n".join(given(Path(found.f).name, "FROM")), re.MULTILINE)
    assert found.target in (None, *stages)
    assert found.platform in (None, *PLATFORMS[Path(found.f).name])


def docker_run(words: Words) -> None:
    many = {"action": "append", "default": []}
    place = next((i for i, word in enumerate(words) if word in dockerfiles()), len(words) - 1)
    named = {"gpus": {}, "entrypoint": {}, "read_only": {"action": "store_true"}}
    found = options_of(words[: place + 1], "image", p=many, v=many, e=many, tmpfs=many, **named)
    file = dockerfiles()[found.image]
    if arguments := words[place + 1 :]:
        assert found.entrypoint == "text-embeddings-router"
        parsed(text_embeddings_router, arguments, in_a_sentence=False)
    assert [published.split(":")[1] for published in found.p] == given(file, "EXPOSE")
    assert [volume.split(":")[1] for volume in found.v] == given(file, "VOLUME")
    assert (found.gpus is not None) == file.endswith(".cuda")
    assert found.tmpfs == (["/tmp"] if found.read_only else [])
    Settings.load(tiny_config(), environ=dict(variable.split("=", 1) for variable in found.e))


def docker_compose(words: Words) -> None:
    found = options_of(words, "command", f={"required": True}, profile={})
    services = yaml.safe_load((ROOT / found.f).read_text())["services"].values()
    assert found.profile in (None, *(name for service in services for name in service.get("profiles", [])))
    assert found.command == "up"


# -- clusters and machines -------------------------------------------------------------------------------------------


def kubectl(words: Words, tmp_path: Path) -> None:
    match words:
        case ["kustomize", _]:
            ran("kubectl", *words)
        case ["apply", *_]:
            with cluster() as address:
                on_it = ("--server", address, "--cache-dir", str(tmp_path), "--dry-run=client", "--validate=false")
                said = ran("kubectl", *words, *on_it)
            assert "deployment.apps/bei created (dry run)" in said.splitlines()
        case ["create", "secret", *_]:
            made = yaml.safe_load(ran("kubectl", *words, "--dry-run=client", "--output=yaml"))
            pod = yaml.safe_load((DEPLOY / "kubernetes" / "deployment.yaml").read_text())["spec"]["template"]["spec"]
            read = [variable.get("valueFrom") for variable in pod["containers"][0]["env"]]
            keys = {of["secretKeyRef"]["key"]: of["secretKeyRef"]["name"] for of in read if of}
            assert keys == dict.fromkeys(made["data"], made["metadata"]["name"])
        case ["exec", _, "--", program, *_]:
            assert program in PROGRAMS_OF_THE_IMAGE
        case _:
            pytest.fail("no rule")


def helm(words: Words, tmp_path: Path) -> None:
    """Rendered with the values of the page about deploying."""
    (values,) = re.findall(r"```yaml\n(.*?)```", text_of("docs/deploying.md"), re.DOTALL)
    (tmp_path / "values.yaml").write_text(values)
    kind, name, chart, *rest = words
    assert kind in ("install", "template")
    assert "kind: Deployment" in ran("helm", "template", name, str(ROOT / chart), *rest, cwd=tmp_path)


def systemctl(words: Words, tmp_path: Path) -> None:
    verb, *flags, unit = words
    assert (f"{unit}.service", flags) == (UNIT.name, ["--now"] if verb == "enable" else [])
    if verb == "reload":
        assert "ExecReload=" in UNIT.read_text()
        return
    (units := tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    shutil.copy(UNIT, units)
    if shutil.which("systemctl") is not None:
        subprocess.run(["systemctl", f"--root={tmp_path}", verb, unit], check=True, capture_output=True)
        assert (units / "multi-user.target.wants" / UNIT.name).is_symlink()


def truss(words: Words, *, in_a_sentence: bool) -> None:
    """tests/truss pushes each of these files."""
    assert words[0] == "push"
    if in_a_sentence and words[-1] == "--config":
        words = words[:-1]
    found = options_of(words[1:], config={"default": "config.yaml"})
    assert {"model_metadata", "model_name"} & yaml.safe_load((ROOT / found.config).read_text()).keys()


# -- packages and other programs -------------------------------------------------------------------------------------


def pip(words: Words) -> None:
    """An extra of ours, a wheel that `make wheels` builds, or a package that a source names."""
    assert words[0] == "install"
    found = options_of(words[1:], "package", e={"action": "store_true"})
    if found.package.endswith(".whl"):
        platforms = "|".join(wheels.MACHINES)
        built = rf"dist/bei-{__version__}-py3-none-manylinux_{wheels.GLIBC.replace('.', '_')}_({platforms})\.whl"
        assert re.fullmatch(built, found.package)
    elif found.e:
        assert re.fullmatch(r"\.\[(\w+)\]", found.package)[1] in EXTRAS
    else:
        assert re.search(rf"(?<![\w-]){re.escape(found.package)}(?![\w-])", SOURCES)


def apt_get(words: Words) -> None:
    *_, package = words
    assert words == ("install", package)
    assert f"apt-get install -y --no-install-recommends {package} " in (DEPLOY / "Dockerfile").read_text()


def pip_audit(words: Words) -> None:
    found = options_of(words, r={"required": True}, require_hashes={"action": "store_true"})
    assert "--hash=sha256:" in text_of(found.r)


def ray_serve(words: Words) -> None:
    """Run from its folder; tests/bulk runs the same application."""
    kind, application, *arguments = words
    module, _, name = application.partition(":")
    folder = ROOT / "examples" / "ray-serve"
    source = (folder / f"{module}.py").read_text()
    assert (kind, f"\ndef {name}(" in source) == ("run", True)
    given_to = dict(argument.split("=") for argument in arguments)
    assert (folder / given_to["config"]).exists()
    assert all(f"\n    {argument}: " in source for argument in given_to)


def schemathesis(words: Words) -> None:
    assert {urlsplit(word).path for word in words if "//" in word} <= PATHS


def shell(words: Words) -> None:
    name, _, value = words[0].partition("=")
    made = {folder for command in COMMANDS if command.words[:2] == ("python", "-c") for folder in folders_of(command)}
    assert name in made or (ROOT / name).is_dir() if not value else name in SOURCES


def folders_of(command: Command) -> list[str]:
    """The paths in a line of Python."""
    return re.findall(r"'([\w/]+)'", command.words[2])


def kill(words: Words) -> None:
    assert hasattr(signal, f"SIG{words[0][1:]}")


RULES: dict[str, Callable[..., None]] = {
    "aiperf": load_generators.aiperf,
    "apt-get": apt_get,
    "bei": bei,
    "cd": shell,
    "curl": curl,
    "docker": docker,
    "export": shell,
    "guidellm": load_generators.guidellm,
    "helm": helm,
    "hf": lambda words: options_of(words, "cache"),
    "kill": kill,
    "kubectl": kubectl,
    "make": make,
    "pip": pip,
    "pip-audit": pip_audit,
    "promtool": lambda words: ran("promtool", *words),
    "python": python,
    "schemathesis": schemathesis,
    "serve": ray_serve,
    "systemctl": systemctl,
    "text-embeddings-router": lambda words, *, in_a_sentence: parsed(
        text_embeddings_router, words, in_a_sentence=in_a_sentence
    ),
    "truss": truss,
    "vllm": load_generators.vllm,
}


def obey(command: Command, tmp_path: Path) -> None:
    program, *words = command.words
    assert program in RULES, f"no rule for {program}"
    rule = RULES[program]
    asked = {"tmp_path": tmp_path, "in_a_sentence": command.in_a_sentence}
    takes = rule.__code__.co_varnames[: rule.__code__.co_argcount + rule.__code__.co_kwonlyargcount]
    rule(tuple(words), **{name: value for name, value in asked.items() if name in takes})


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one_of_its_program(command, tmp_path):
    obey(command, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        "bei serve MODEL --treads 4",
        "bei service",
        "bei convert ./my-model",
        "python -m benchmarks.soap",
        "python server/app.py",
        "python -c \"import truss; truss.load('.', 'examples/model-pie/config.yaml')\"",
        "cd build/trust",
        "make tests",
        "make serve HOSTS=a",
        "curl 127.0.0.1:8080/v1/embedded -d '{}'",
        "curl 127.0.0.1:8080/v1/embeddings",
        """curl 127.0.0.1:8080/v1/embeddings -d '{"text": "a"}'""",
        """curl 127.0.0.1:8080/v1/embeddings -d '{"input": 3}'""",
        """curl 127.0.0.1:8080/v1/embeddings -d '{"input": "a", "dimension": 4}'""",
        """curl 127.0.0.1:8080/rerank -d '{"query": "a", "texts": ["b"], "padding": "max_length"}'""",
        "docker build -f deploy/Dockerfile -t bei --target bake .",
        "docker build -f deploy/Dockerfiles -t bei .",
        "docker build --platform linux/arm64 -f deploy/Dockerfile.cuda -t bei .",
        "docker build --platform linux/riscv64 -f deploy/Dockerfile -t bei .",
        "docker run -p 8080:80 -v bei-cache:/cache bei",
        "docker run -p 8080:8080 -v bei-cache:/cache bei-cuda",
        "docker run -p 8080:8080 -v bei-cache:/cache --read-only bei",
        "docker run -p 8080:8080 -v bei-cache:/cache -e BEI_PRECISION=int7 bei",
        "docker run -p 8080:8080 -v bei-cache:/cache baked",
        "docker run -p 8080:8080 -v bei-cache:/cache bei --model-id owner/name",
        "docker run --entrypoint text-embeddings-router -p 8080:8080 -v bei-cache:/cache bei --model owner/name",
        "docker compose -f deploy/docker-compose.yaml --profile observed up",
        "kubectl apply -k deploy/kubernets",
        "kubectl create secret generic bei --from-literal=api_key=KEY --from-literal=hf-token=TOKEN",
        "kubectl exec POD -- kill -HUP 1",
        "helm install bei deploy/helm -f values.yml",
        "systemctl enable --now beid",
        "truss push --config examples/model-py/configs.yaml",
        "pip install -e '.[plots]'",
        "pip install torch==2.12.0",
        "pip install dist/bei-0.1.0-py3-none-any.whl",
        "aiperf profile -m MODEL --url U --endpoint-type embedding",
        "vllm bench serve --backend openai-embeddings --endpoint /v1/embedded",
        "vllm bench serve --backend vllm-pooling --endpoint /v1/embeddings",
        "guidellm run --backend kind=openai_http,target=U,request_format=/v1/embedded",
        "guidellm run --backend kind=openai_http,request_format=/pooling --constraint kind=max_requests,value=9",
        "gcloud run deploy",
    ],
)
def test_a_wrong_command_is_noticed(wrong, tmp_path):
    (command,) = commands_of(f"```sh\n{wrong}\n```")
    with pytest.raises((AssertionError, Error, click.ClickException, argparse.ArgumentError, KeyError, OSError)):
        obey(command, tmp_path)
