"""The law of the tests: what several of them use stands in tests/support, and no test module is imported."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def taken(source: str) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the module; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_tests(source: str) -> list[str]:
    return [name for name in taken(source) if re.fullmatch(r"tests\.(\w+\.)*(test_\w+|conftest)", name)]


def test_no_test_module_is_imported():
    found = ((path, name) for path in TESTS.rglob("*.py") for name in imported_tests(path.read_text()))
    assert [f"{path.relative_to(TESTS)} imports {name}" for path, name in found] == []


@pytest.mark.parametrize(
    "source",
    ["from tests.api.test_tasks import KINDS", "from tests.api import test_tasks", "import tests.live.conftest"],
)
def test_an_import_of_a_test_module_is_noticed(source):
    assert len(imported_tests(source)) == 1


def test_helpers_stand_in_a_folder():
    assert [path.name for path in TESTS.glob("*.py") if not re.match(r"test_|conftest", path.name)] == []
