"""The law of the tree: imports point down. A module may import its own folder, and any layer below. No files import one
another in a cycle, no file or function is longer than its bound, and no `__init__.py` holds logic."""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.project import HOME, PROJECT, imports

TREE = Path(__file__).parents[1]
ROOT = TREE / "packages" / "bei"
LAYERS = [
    "errors",
    "files extras progress samples",
    "pooling wire memory processes work inflight settings metrics logs tracing",
    "architectures",
    "checkpoint",
    "batching",
    "engines",
    "tokenizer",
    "tasks",
    "slots",
    "scheduler",
    "messages",
    "remote",
    "jobs",
    "serving",
    "bulk inprocess",
    "api",
    "server",
    "launch bundle",
    "options",
    "commands doctor bench evaluate router",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
PURE = {"batching", "errors", "tasks", "architectures"}
IMPURE = {"threading", "asyncio", "concurrent", "time", "socket", "os", "pathlib", "httpx", "subprocess"}
NEVER = {"pickle", "transformers", "sentence_transformers", "truss"}

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
SUFFIXES = (".py", ".h", ".cpp", ".mjs")


def layer(inside: Path) -> str:
    return inside.parts[0].removesuffix(".py")


def violations(inside: Path, source: str) -> list[str]:
    found, here = [], layer(inside)
    for name in imports(ast.parse(source)):
        top, *rest = name.split(".")
        if top == "bei" and rest and rest[0] != "__version__" and rest[0] != here and RANK[rest[0]] >= RANK[here]:
            found.append(f"{inside} must not import {name}")
        if not inside.as_posix().startswith(HOME.get(top, ("",))):
            found.append(f"{top} belongs in {HOME[top]}, not in {inside}")
        if here in PURE and top in IMPURE:
            found.append(f"{inside} is pure, and imports {top}")
        if top in NEVER:
            found.append(f"{inside} imports {top}")
    return found


def test_imports_point_down():
    """Of all files but `bei/__init__.py`, which offers a module from above, late."""
    paths = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert [found for path in paths for found in violations(path.relative_to(ROOT), path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api/tei.py", "from bei.server import app"),
        ("engines/null.py", "from bei.scheduler import Scheduler"),
        ("batching.py", "import time"),
        ("serving/model.py", "import torch"),
        ("serving/service.py", "import pyarrow"),
        ("api/openai.py", "from starlette.responses import Response"),
        ("checkpoint/load.py", "def read():\n    import pickle"),
    ],
)
def test_the_law_bites(module, source):
    assert len(violations(Path(module), source)) == 1


def test_one_name_in_packages():
    """Truss appends packages/ to sys.path, last and shared with its own modules."""
    assert [p.name for p in ROOT.parent.iterdir() if not p.name.startswith((".", "__"))] == ["bei"]


# -- circles ---------------------------------------------------------------------------------------------------------


def name_of(inside: Path) -> str:
    """The module that a file below ROOT is."""
    return ".".join(("bei", *inside.with_suffix("").parts)).removesuffix(".__init__")


def modules(root: Path) -> dict[str, ast.Module]:
    return {name_of(path.relative_to(root)): ast.parse(path.read_text()) for path in root.rglob("*.py")}


NAMED = re.compile(r"(bei\.\w+\.[\w.]+)(:\w+)?")


def wanted(tree: ast.AST) -> Iterator[str]:
    """Dotted names of ours that a module imports, at the top or in a function, or names in a string as a command or a
    table does: `bei.engines.child`, `bei.engines.null:NullEngine`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and (named := NAMED.fullmatch(str(node.value))):
            yield named[1]


def graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which modules each module imports; of `from a.b import c` it is `a.b.c`, where that is a module."""
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for dotted in wanted(tree):
            target = dotted if dotted in trees else dotted.rpartition(".")[0]
            if target in trees and target != name:
                found[name].add(target)
    return found


def circle(trees: Mapping[str, ast.Module]) -> list[str]:
    try:
        TopologicalSorter(graph(trees)).prepare()
    except CycleError as exc:
        found: list[str] = exc.args[1]
        return found
    return []


def test_no_files_import_one_another_in_a_circle():
    trees = modules(ROOT)
    del trees["bei"]  # what a user imports: it offers a module from above, late
    assert circle(trees) == []


@pytest.mark.parametrize(
    "back",
    [
        "from bei.tasks.low import f",
        "from bei.tasks import low",
        "import bei.tasks.low",
        "def f():\n    from bei.tasks import low",
        "if TYPE_CHECKING:\n    from bei.tasks.low import F",
        'TABLE = {"low": "bei.tasks.low:F"}',
    ],
)
def test_a_circle_is_noticed(back):
    low, high = ast.parse("def g():\n    from bei.tasks.middle import h"), ast.parse(back)
    trees = {"bei.tasks": ast.parse(""), "bei.tasks.low": low, "bei.tasks.middle": ast.parse("from bei import high")}
    assert circle({**trees, "bei.high": ast.parse("import json")}) == []
    assert set(circle({**trees, "bei.high": high})) == {"bei.tasks.low", "bei.tasks.middle", "bei.high"}


# -- sizes -----------------------------------------------------------------------------------------------------------


def tracked(*suffixes: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TREE, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name.endswith(suffixes) and (TREE / name).exists()]


def test_no_file_is_long():
    """Of files that are run, compiled or measured; a test may be a long list of cases."""
    ours = [name for name in tracked(*SUFFIXES) if not name.startswith("tests/")]
    long = {name for name in ours if len((TREE / name).read_text().splitlines()) > MOST_LINES}
    assert long == set(), "cut it in files of one job each"


def long_functions(tree: ast.AST) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [of.name for of in functions if (of.end_lineno or of.lineno) - of.lineno >= MOST_LINES_OF_A_FUNCTION]


def test_no_function_is_long():
    found = {name: long_functions(ast.parse((TREE / name).read_text())) for name in tracked(".py")}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_a_long_function_is_noticed():
    body = "    pass\n" * (MOST_LINES_OF_A_FUNCTION - 1)
    assert (
        long_functions(ast.parse(f"class A:\n    async def f(self):\n{body}".replace("    pass", "        pass"))) == []
    )
    assert long_functions(ast.parse(f"def f():\n    pass\n{body}")) == ["f"]


def long_blocks(text: str) -> list[int]:
    """The first lines of C++'s blocks after a parenthesis, functions and loops, whose layout is clang-format's."""
    lines, found = text.splitlines(), []
    depth = [len(line) - len(line.lstrip()) for line in lines]
    for i, line in enumerate(lines):
        if re.search(r"\)[\w\s:<>*&-]*\{$", line):
            last = next(j for j in range(i + 1, len(lines)) if depth[j] <= depth[i] and lines[j].lstrip()[:1] == "}")
            found += [i + 1] * (last - i >= MOST_LINES_OF_A_FUNCTION)
    return found


def test_no_function_of_the_native_engine_is_long():
    names = [name for name in tracked(".h", ".cpp") if name.startswith("packages/")]
    sources = {name: (TREE / name).read_text() for name in names}
    assert any("{" in text for text in sources.values())
    assert {name: lines for name, text in sources.items() if (lines := long_blocks(text))} == {}


def test_a_long_function_of_the_native_engine_is_noticed():
    body = "    x++;\n" * (MOST_LINES_OF_A_FUNCTION - 2)
    assert long_blocks(f"struct A {{\n  int f() const {{\n{body}  }}\n}};\n") == []
    assert long_blocks(f"struct A {{\n  int f() const {{\n    x++;\n{body}  }}\n}};\n") == [2]


# -- __init__.py -----------------------------------------------------------------------------------------------------


def logic(tree: ast.Module) -> list[str]:
    """Statements that an `__init__.py` must not have: anything but a docstring, imports (late ones in `__getattr__`),
    `__all__` and constants."""
    allowed = (_is_import, _is_constant, _is_late_import)
    return [ast.unparse(node).splitlines()[0] for node in tree.body if not any(is_so(node) for is_so in allowed)]


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_late_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def test_no_package_holds_logic():
    found = {name for name in tracked("__init__.py") if logic(ast.parse((TREE / name).read_text()))}
    assert not found, "move it into a module of its own"


@pytest.mark.parametrize(
    "line",
    ["def f(): ...", "class A: ...", "import os\nlog = os.environ", "X = f()", "if True:\n    import json", "x: int"],
)
def test_logic_is_noticed(line):
    assert len(logic(ast.parse(f'"""Doc."""\n__all__ = ["a"]\n__version__: str = "1"\n{line}'))) == 1


# -- what the checkers are told to overlook --------------------------------------------------------------------------

IGNORE = re.compile(r"#\s*(?:type: ignore|noqa|pragma|mypy:|ruff:|pyright:|NOLINT)(?P<of>\[[^]]*\]|\S*)(?P<reason>.*)")
CODES = re.compile(r"\[[a-z-]+(?:, ?[a-z-]+)*\]|:")


def unexplained(text: str) -> list[str]:
    """Lines that tell a checker to overlook all, or something without a reason behind it or in the line above."""
    lines = text.splitlines()
    found = []
    for above, line in zip(["", *lines], lines, strict=False):
        ignore = IGNORE.search(line)
        if ignore is None:
            continue
        reason = re.sub(r"^[\s#]*(?:[A-Z]+\d+[\s,#]*)*", "", ignore["reason"])
        if not CODES.fullmatch(ignore["of"]) or not (reason or above.lstrip().startswith("# ")):
            found.append(line.strip())
    return found


def test_what_a_checker_overlooks_has_its_reason():
    found = {name: unexplained((TREE / name).read_text()) for name in tracked(".py") if name != "tests/test_layers.py"}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_missing_reason_is_noticed():
    good = [
        "f()  # type: ignore[arg-type]  # its stub is wrong",
        "# its stub is wrong\nf()  # type: ignore[arg-type,misc]",
        "print(1)  # noqa: T201  make reads it",
    ]
    bad = [
        "f()  # type: ignore",
        "f()  # type: ignore  # its stub is wrong",
        "f()  # type: ignore[arg-type]",
        "print(1)  # noqa",
        "print(1)  # noqa: T201, E501",
        "# ruff: noqa",
    ]
    assert [unexplained(text) for text in good] == [[]] * len(good)
    assert [len(unexplained(text)) for text in bad] == [1] * len(bad)


def test_no_rule_of_a_checker_is_off_for_all():
    """Beside those that CONTRIBUTING.md explains, and annotations in tests."""
    tools = PROJECT["tool"]
    assert tools["mypy"]["strict"] is True
    assert set(tools["mypy"]) == {
        *("strict", "files", "mypy_path", "python_version", "enable_error_code", "untyped_calls_exclude", "overrides"),
    }
    (untyped,) = tools["mypy"]["overrides"]
    assert set(untyped) == {"module", "ignore_missing_imports"}
    explained = set(re.findall(r"`([A-Z]+\d+)`", (TREE / "CONTRIBUTING.md").read_text()))
    assert set(tools["ruff"]["lint"]["ignore"]) <= explained
    assert tools["ruff"]["lint"]["per-file-ignores"] == {"tests/**": ["ANN"]}
