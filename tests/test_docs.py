"""Documents that are made from the code are those of the code; and whatever a document names is there."""

import re
import runpy
import subprocess
from pathlib import PurePosixPath

import click
import pytest

from bei import api, cli
from bei.router import text_embeddings_router
from bei.settings import Settings
from tests.servers import ROOT

FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
DOCUMENTS = [name for name in FILES if name.endswith(".md")]
PATHS = {str(parent) for name in FILES for parent in (PurePosixPath(name), *PurePosixPath(name).parents)} - {"."}
PACKAGE = ROOT / "packages" / "bei"
TOPS = (
    {PurePosixPath(name).parts[0] for name in FILES if "/" in name}
    | {path.name for path in PACKAGE.iterdir()}
    | {"cpp"}
)
"""Where a path of ours may begin: here, or in the package."""
TESTS = "\n".join(f"{name} {(ROOT / name).read_text()}" for name in FILES if re.fullmatch(r"tests/.*\.py", name))
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
OF_MODELS = {"modeling.py"}
OTHER_VARIABLES = {"BEI_CONFIG"}
SCRIPTS = "\n".join(
    (ROOT / name).read_text() for name in FILES if re.fullmatch(r"(benchmarks|tests/fuzz)/.*\.py", name)
)
OTHER_FLAGS = {
    *("--help", "--version", "--require-hashes", "--python-version", "--only-binary"),  # any program's, pip's
    *("--read-only", "--tmpfs", "--target", "--profile", "--phases", "--max-time", "--request-timeout"),  # docker's,
    # schemathesis's
    *re.findall(r'"(--[a-z-]+)"', SCRIPTS),
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_of(name: str) -> list[str]:
    """What stands between backticks, and every line of a block of code."""
    text = text_of(name)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", rest, re.MULTILINE)
    return [*(line for block in blocks for line in block.splitlines()), *indented, *re.findall(r"`([^`\n]+)`", rest)]


def commands() -> dict[str, set[str]]:
    """The flags of each of our commands."""
    own = {f"bei {name}": command for name, command in cli.main.commands.items()}
    programs = {**own, "text-embeddings-router": text_embeddings_router}
    return {
        name: {flag for param in command.params if isinstance(param, click.Option) for flag in _flags(param)}
        for name, command in programs.items()
    }


def _flags(option: click.Option) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def test_the_table_of_models():
    made = runpy.run_path(str(ROOT / "docs" / "models.py"))
    assert made["FILE"].read_text() == made["table"](), "run: make docs"


EXAMPLES = [name for name in FILES if re.fullmatch(r"examples/.*/config\.yaml", name)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_that_our_server_takes(name):
    """Its settings are accepted, its folder is in the table, and its header says no other thing."""
    Settings.from_file(ROOT / name, environ={})
    header = "".join(line for line in text_of(name).splitlines(keepends=True) if line.startswith("#"))
    assert "refuse" not in header
    assert f"({PurePosixPath(name).parent.name}/config.yaml)" in text_of("examples/README.md")
    for config in re.findall(r"--config (\S+)", header):
        assert config == name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    headings = {}
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = {
                re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            }
            assert anchor in headings, target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_tests_targets_and_variables_are_there(name):
    known = {f"BEI_{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    missing = []
    for code in code_of(name):
        missing += [
            path for path in paths_in(code) if not any(one == path or one.endswith(f"/{path}") for one in PATHS)
        ]
        missing += [f"make {target}" for target in re.findall(r"\bmake ([a-z][a-z-]+)", code) if target not in TARGETS]
        missing += [test for test in re.findall(r"\btest_\w+", code) if not re.search(rf"\b{test}\b", TESTS)]
        missing += set(re.findall(r"\bBEI_[A-Z_]+\b", code)) - known
    assert missing == []


def paths_in(code: str) -> list[str]:
    """Paths of this tree, and names of sources; one of an environment, an address or a checkpoint is none."""
    found = re.findall(r"(?<![\w/.<>*{}:~-])((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|cpp|h|md))(?![\w/*<{])", code)
    ours = [path for path in found if "/" not in path or path.split("/")[0] in TOPS]
    return [path.rstrip("/.") for path in ours if path not in OF_MODELS]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_and_routes_are_there(name):
    known, routes = commands(), {route.path for route in api.ROUTES}
    every, missing = set().union(*known.values(), OTHER_FLAGS), []
    for code in code_of(name):
        program = re.search(r"(?:^|[\s/])(bei (?:serve|embed|info|build)|text-embeddings-router)\b", code)
        flags = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", code))
        missing += flags - (known[program[1]] | {"--help"} if program else every)
        missing += [path for path in re.findall(r"\b(?:GET|POST) (/[\w/.-]*)", code) if path not in routes]
    assert missing == []
