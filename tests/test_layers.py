"""The law of the tree: imports point down. A module may import its own folder, and any layer below."""

import ast
from pathlib import Path

import pytest

from tests.support.project import HOME, imports

ROOT = Path(__file__).parents[1] / "packages" / "bei"
LAYERS = [
    "errors",
    "wire memory files processes work inflight settings metrics logs tracing",
    "architectures",
    "checkpoint",
    "engines",
    "tokenizer batching",
    "tasks",
    "scheduler",
    "remote",
    "serving",
    "bulk",
    "api",
    "server",
    "launch",
    "router",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
PURE = {"batching", "errors", "tasks", "architectures"}
IMPURE = {"threading", "asyncio", "concurrent", "time", "socket", "os", "pathlib", "httpx", "subprocess"}
NEVER = {"pickle", "transformers", "sentence_transformers", "truss"}


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


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    inside = path.relative_to(ROOT)
    if inside.as_posix() != "__init__.py":
        assert violations(inside, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api/tei.py", "from bei.server import app"),
        ("engines/null.py", "from bei.scheduler import Scheduler"),
        ("batching.py", "import time"),
        ("serving/service.py", "import torch"),
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
