"""Generated documents are those of the code, and everything that a document names is there."""

import ast
import importlib
import re
import runpy
from pathlib import PurePosixPath

import click
import pytest

from bei import api, cli
from bei.architectures.families import FAMILIES
from bei.router import text_embeddings_router
from bei.settings import Settings
from docs import checkpoints
from tests.support.documents import DOCUMENTS, FILES, code_of, text_of
from tests.support.servers import ROOT

PATHS = {str(parent) for name in FILES for parent in (PurePosixPath(name), *PurePosixPath(name).parents)} - {"."}
PACKAGE = ROOT / "packages" / "bei"
TOPS = (
    {PurePosixPath(name).parts[0] for name in FILES if "/" in name}
    | {path.name for path in PACKAGE.iterdir()}
    | {"cpp"}
)
"""The first parts of a path of ours: in the repository, or in the package."""
TESTS = "\n".join(f"{name} {(ROOT / name).read_text()}" for name in FILES if re.fullmatch(r"tests/.*\.py", name))
SOURCES = [name for name in FILES if re.search(r"\.(py|h|ya?ml)$|^Makefile$", name) and name != "tests/test_docs.py"]
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
OF_OTHERS = {"modeling.py", "server/main.py"}  # of models, of Truss
FOREIGN_PATHS = {
    *("/v1", "/cache", "/baked", "/proc", "/tmp", "/etc/bei/config.yaml", "/run/bei.sock"),
    "/tmp/training_checkpoints",  # Baseten's
}
FOREIGN_WORDS = {"OTEL_TRACES_SAMPLER_ARG", "RAY_USAGE_STATS_ENABLED", "GIVEN_NAME"}
OTHER_VARIABLES = {"BEI_CONFIG"}
FOREIGN_FLAGS = {
    *("--help", "--version", "--require-hashes", "--python-version", "--only-binary"),  # any program's, pip's
    *("--read-only", "--tmpfs", "--target", "--profile", "--phases", "--max-time", "--request-timeout"),  # docker's,
    # schemathesis's
    *("--gpus", "--from-literal", "--now", "--checks"),  # docker's, kubectl's, systemctl's, schemathesis's
    *("--url", "--endpoint-type", "--request-count", "--concurrency", "--tokenizer"),  # aiperf's
    *("--base-url", "--dataset-name", "--backend", "--endpoint"),  # those of vllm bench serve
    *("--constraint", "--data", "--entrypoint", "--platform"),  # guidellm's, docker's
}
PROGRAMS = re.compile(
    r"(?:^|[\s/])(bei (?:serve|embed|info|build|convert|doctor|bench|eval)|text-embeddings-router"
    r"|python -m [\w.]+|pytest)(?=[\s`]|$)"
)


def source_of(program: str) -> str:
    """The text of `python -m program`; empty where there is none."""
    place = ROOT.joinpath(*program.split("."))
    found = [file for file in (place.with_suffix(".py"), place / "__main__.py", place / "__init__.py") if file.exists()]
    return "".join(file.read_text() for file in found)


def commands() -> dict[str, set[str]]:
    """The flags of each of our commands."""
    context = click.Context(cli.main)
    own = {f"bei {name}": cli.main.get_command(context, name) for name in cli.main.list_commands(context)}
    programs = {**own, "text-embeddings-router": text_embeddings_router}
    scripts = {
        re.sub(r"(/__main__)?\.py$", "", name).replace("/", ".")
        for name in FILES
        if re.fullmatch(r"(benchmarks|tests/fuzz)/.*\.py", name)
    }
    return {
        **{
            name: {flag for param in command.params if isinstance(param, click.Option) for flag in _flags(param)}
            for name, command in programs.items()
        },
        **{f"python -m {name}": set(re.findall(r"\"(--[a-z0-9-]+)\"", source_of(name))) for name in scripts},
        "pytest": {"--durations"},
    }


def _flags(option: click.Option) -> list[str]:
    return [*option.opts, *option.secondary_opts]


@pytest.mark.parametrize("name", ["models", "settings", "routes"])
def test_a_table_that_is_made_from_the_code(name):
    made = runpy.run_path(str(ROOT / "docs" / f"{name}.py"))
    assert made["FILE"].read_text() == made["table"](), "run: make docs"


def test_the_readme_counts_the_architectures():
    assert f"lists {len(FAMILIES)} architectures" in text_of("README.md")


def test_most_checkpoints_that_people_deploy_are_served():
    names = [of.name for of in checkpoints.outcomes() if not of.refusal]
    assert len(names) == len(set(names)) >= 120


EXAMPLES = [name for name in FILES if re.fullmatch(r"examples/.*/config\.yaml", name)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_that_our_server_takes(name):
    """Its settings are accepted, its folder is in the table, and its header agrees."""
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


VARIABLES = {f"BEI_{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
WORDS = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", "\n".join(map(text_of, SOURCES)))) | FOREIGN_WORDS
WORDS |= {str(option.envvar) for option in text_embeddings_router.params}
COMMANDS = commands()
ROUTES = {route.path for route in api.ROUTES}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_whatever_a_document_names_is_there(name):
    assert missing(text_of(name), code_of(text_of(name))) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("`tests/test_docs.py`, `docs/`, [a](b), `cpp/abi.h`, `api.py`, `openai/m`", 0),
        ("`tests/test_dogs.py`", 1),
        ("`test/test_docs.py`", 1),
        ("`abi.hh`, `cpp/abj.h`", 1),
        ("`bei serve --threads 4`, `--workers`, `--pooling splade`, `pip-audit --require-hashes`", 0),
        ("`--threats`", 1),
        ("```sh\nbei embed a b --max-connections 4\n```", 1),
        ("    .venv/bin/python -m benchmarks.soak --minutes 30 --flag=--workers=2", 0),
        ("    .venv/bin/python -m benchmarks.soak --hours 30", 1),
        ("    .venv/bin/python -m benchmarks.soap", 1),
        ("`POST /v1/embeddings`, `/rerank`, `/v1/rerank` and `/cache`", 0),
        ("`/reranker`", 1),
        ("`POST /v1/embedding`", 1),
        ("```sh\ncurl -s 127.0.0.1:8080/v1/embed -d '{}'\n```", 0),
        ("```sh\ncurl -s 127.0.0.1:8080/v1/embedded -d '{}'\n```", 1),
        ("`BEI_THREADS=4`, `HF_TOKEN`, `TRUSS_SECRET_<name>`, `OTEL_*`, `BEI_*`", 0),
        ("BEI_THREAD", 1),
        ("`HF_TOKENS`", 1),
        ("`make test`, `make serve PORT=1`", 0),
        ("`make tests`", 1),
        ("`tests/test_docs.py: test_links_lead_somewhere`, `test_links_lead_somewhere`, `test_*`", 0),
        ("`test_links_lead_nowhere_at_all`"[:-1] + "s`", 1),
        ("`tests/test_layers.py: test_links_lead_somewhere`", 1),
        ("`errors.py: short`, `kernel/dot.cpp: multiply`, `settings/keys.py: OBEYED`", 0),
        ("`errors.py: shorter`", 1),
    ],
)
def test_what_is_not_there_is_noticed(text, count):
    found = missing(text, code_of(text))
    assert len(found) == count, found


def missing(text: str, codes: list[str]) -> list[str]:
    """Names in a document that the tree lacks: paths, flags, routes, variables, make's targets and tests."""
    found = []
    for code in codes:
        found += [path for path in paths_in(code) if not any(one == path or one.endswith(f"/{path}") for one in PATHS)]
        found += [f"make {target}" for target in re.findall(r"\bmake ([a-z][a-z-]+)", code) if target not in TARGETS]
        found += missing_flags(code)
        found += [path for path in routes_in(code) if path not in ROUTES]
        found += [name for name in variables_in(code) if not name.startswith("BEI_") and name not in WORDS]
    found += set(re.findall(r"\bBEI_[A-Z0-9_]*[A-Z0-9]\b", text)) - VARIABLES - set(found)
    return found + missing_tests(text) + missing_names(text)


def paths_in(code: str) -> list[str]:
    """Paths of this tree, and names of sources; not those of an environment, an address or a checkpoint."""
    found = re.findall(r"(?<![\w/.<>*{}:~-])((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|cpp|h|md))(?![\w/*<{])", code)
    ours = [path for path in found if re.search(r"\.(py|cpp|h|md)$", path) or path.split("/")[0] in TOPS]
    return [path.rstrip("/.") for path in ours if path not in OF_OTHERS and not path.startswith(".venv")]


def missing_flags(code: str) -> list[str]:
    """Unknown flags of a program; without one, and before its name, flags that none of our programs has."""
    program = PROGRAMS.search(code)
    if program is None or not program[1].startswith(("bei", "text-", "python -m benchmarks", "python -m tests")):
        return sorted(flags_in(code) - set().union(*COMMANDS.values()) - FOREIGN_FLAGS)
    if program[1] not in COMMANDS:
        return [program[1]]
    before, own = code[: program.start(1)], code[program.start(1) :]
    return sorted((flags_in(before) - FOREIGN_FLAGS) | (flags_in(own) - COMMANDS[program[1]] - {"--help"}))


def flags_in(code: str) -> set[str]:
    return set(re.findall(r"(?<![\w=-])(--[a-z][a-z0-9-]+)", code))


def routes_in(code: str) -> list[str]:
    """Paths after a method, paths alone, and those of our server's addresses."""
    found = re.findall(r"\b(?:GET|POST) (/[\w/.{}-]*)", code) + re.findall(
        r"(?:127\.0\.0\.1|localhost):\d+(/[\w/.-]+)", code
    )
    if re.fullmatch(r"/[a-z][\w/.{}-]*", code):
        found.append(code)
    return [path for path in found if path not in FOREIGN_PATHS]


def variables_in(code: str) -> list[str]:
    return re.findall(r"(?<![\w<{$-])[A-Z][A-Z0-9]+_[A-Z0-9_]*[A-Z0-9](?![\w*])", code)


def missing_tests(text: str) -> list[str]:
    """Tests that the named file lacks, or that no file has."""
    found = [
        f"{file}: {test}" for file, test in re.findall(r"(tests/[\w/]+\.py): (test_\w+)", text) if not _has(file, test)
    ]
    return found + [
        test
        for test in set(re.findall(r"(?<!/)\b(test_\w+)\b(?!\.py|\w)", text))
        if not re.search(rf"\b{test}\b", TESTS)
    ]


def missing_names(text: str) -> list[str]:
    """Names that the source named before them lacks: `errors.py: short`."""
    named = re.findall(r"`(?!tests/)([\w/]+\.(?:py|h|cpp)): (\w+)`", text)
    return [f"{file}: {name}" for file, name in named if not any(_defines(path, name) for path in _files(file))]


def _files(file: str) -> list[str]:
    return [path for path in FILES if path == file or path.endswith(f"/{file}")]


def _defines(path: str, name: str) -> bool:
    return (
        re.search(rf"^\s*(async def|def|class) {name}\b|^{name}\b|\b{name}(\(|::)", text_of(path), re.MULTILINE)
        is not None
    )


def _has(file: str, test: str) -> bool:
    return (ROOT / file).exists() and f"def {test}(" in (ROOT / file).read_text()


LIFE = text_of("docs/life-of-a-request.md")
STEPS = re.findall(r"^\d+\. (.*)$", LIFE, re.MULTILINE)
MODULES = "|".join(sorted({path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__init__", "cpp"}))


def named_in(text: str) -> list[str]:
    """Dotted names of modules, classes and functions of bei, and `cpp/file: name` of the C++."""
    return re.findall(rf"`((?:{MODULES})(?:\.\w+)+|cpp/[\w/]+\.\w+: \w+)`", text)


def is_there(name: str) -> bool:
    file, _, function = name.partition(": ")
    if function:
        path = PACKAGE / "engines" / "native" / file
        return path.exists() and re.search(rf"\b{function}(\(|::)", path.read_text()) is not None
    *modules, rest = ["bei", *name.split(".")]
    attributes = [rest]
    while modules:
        try:
            found = importlib.import_module(".".join([*modules, *attributes[:1]]))
            return _has_attributes(found, attributes[1:])
        except ImportError:
            attributes.insert(0, modules.pop())
    return False


def _has_attributes(found: object, names: list[str]) -> bool:
    for name in names:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def test_the_steps_of_a_request_are_numbered_and_each_names_a_function():
    assert [int(number) for number in re.findall(r"^(\d+)\. ", LIFE, re.MULTILINE)] == list(range(1, len(STEPS) + 1))
    assert [step for step in STEPS if not named_in(step)] == []


@pytest.mark.parametrize("name", sorted(set(named_in(LIFE))))
def test_a_function_that_a_step_names_is_there(name):
    assert is_there(name)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("scheduler.Scheduler.submit", True),
        ("engines.child", True),
        ("scheduler.Scheduler.submits", False),
        ("schedule.submit", False),
        ("cpp/kernel/dot.cpp: tile", True),
        ("cpp/kernel/dot.cpp: tiles", False),
    ],
)
def test_a_name_that_is_gone_is_noticed(name, there):
    assert is_there(name) == there


GLOSSARY = re.findall(r"^\| ([\w -]+) \| ([^|]+) \| `([\w.]+)` \|$", text_of("CONTRIBUTING.md"), re.MULTILINE)


def test_the_glossary_is_short_and_defines_a_word_once():
    (section,) = re.findall(r"^## Words$(.*?)^## ", text_of("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    words = [word for word, _, _ in GLOSSARY]
    assert len(words) == len(re.findall(r"^\|", section, re.MULTILINE)) - 2
    assert 20 <= len(words) == len(set(words)) <= 30


@pytest.mark.parametrize(("word", "place"), [(word, place) for word, _, place in GLOSSARY])
def test_a_word_of_the_glossary_is_in_the_code(word, place):
    assert is_there(place)
    module = re.sub(r"\.[A-Z]\w*$", "", place).replace(".", "/")
    files = [PACKAGE / f"{module}.py", *(PACKAGE / module).rglob("*.py"), *(PACKAGE / module).rglob("*.h")]
    text = " ".join(file.read_text() for file in files if file.exists())
    assert re.search(word.replace(" ", "_? ?"), text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("Where is a text cut?", r"^ .*\b(cut|longest_first)\("),
        ("Where is a 429 decided?", r"\b(raise|return) Overloaded\b"),
        ("Where would weights of another type go?", r"\bBEI_INT8\b|\"int8\": (2|np\.)"),
    ],
)
def test_an_answer_names_every_place(question, place):
    (answer,) = re.findall(rf"^\| {re.escape(question)} \| (.*) \|$", text_of("CONTRIBUTING.md"), re.MULTILINE)
    sources = [name for name in FILES if re.fullmatch(r"packages/bei/.*\.(py|h|cpp)", name)]
    places = [name for name in sources if re.search(place, text_of(name), re.MULTILINE)]
    assert len(places) >= 2
    named = paths_in(answer.replace("`", " "))
    assert [name for name in places if not any(name.endswith(f"/{path}") for path in named)] == []


def test_the_picture_shows_every_part_of_the_package():
    page = text_of("docs/architecture.md")
    (picture,) = re.findall(r"^## Design in one picture$(.*)^## ", page, re.MULTILINE | re.DOTALL)
    parts = {
        path.name.removesuffix("/") + ("/" if path.is_dir() else "")
        for path in PACKAGE.iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert [part for part in sorted(parts) if f" {part} " not in picture] == []


def test_the_readme_is_read_in_five_minutes():
    assert len(text_of("README.md").split()) <= 900


RELATIVE = re.compile(r"(?:^|[.:;!|] |\n)(?:What|Whatever|Whoever) [^?.|]*(?:[.|]|$)")


def relative_subjects(text: str) -> list[str]:
    """Sentences that begin with a relative clause, as a stranger has to read twice; questions may."""
    return [found.strip() for found in RELATIVE.findall(text)]


def docstrings(name: str) -> list[str]:
    nodes = (node.value for node in ast.walk(ast.parse(text_of(name))) if isinstance(node, ast.Expr))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def comments(name: str) -> list[str]:
    """Each block of lines that begin with the mark of a comment."""
    blocks = re.findall(r"(?:^[ \t]*(?:#|//) .*\n)+", text_of(name), re.MULTILINE)
    return [" ".join(re.findall(r"(?:#|//) (.*)", block)) for block in blocks]


PROSE = [name for name in FILES if re.search(r"\.(md|py|h|cpp)$", name)]


def prose(name: str) -> list[str]:
    """The sentences of a document, or those in the comments and docstrings of a source."""
    if name in DOCUMENTS:
        return [text_of(name)]
    return [*comments(name), *(docstrings(name) if name.endswith(".py") else [])]


def test_no_sentence_begins_with_a_relative_clause():
    found = {name: [of for text in prose(name) for of in relative_subjects(text)] for name in PROSE}
    assert {name: sentences for name, sentences in found.items() if sentences} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("What is kept of a row.", 1),
        ("A row. What is left is dropped.", 1),
        ("Whoever asks gets it.", 1),
        ("What is Deep Learning?", 0),
        ("It says what it does.", 0),
    ],
)
def test_a_relative_clause_is_noticed(text, count):
    assert len(relative_subjects(text)) == count
