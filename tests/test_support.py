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


def sleeps(source: str) -> list[int]:
    """Lines that sleep and do not say why. `sleep(0)` only lets others run."""
    lines = source.splitlines()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asleep = [of for of in calls if ast.unparse(of.func).endswith("sleep") and ast.unparse(of) != "asyncio.sleep(0)"]
    return [of.lineno for of in asleep if "  # " not in lines[of.lineno - 1]]


def test_nothing_sleeps_in_the_hope_that_something_happens():
    others = (path for path in TESTS.rglob("*.py") if path.name != "waiting.py")
    found = {path.relative_to(TESTS): lines for path in others if (lines := sleeps(path.read_text()))}
    assert found == {}, "wait_until of tests/support/waiting.py"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("time.sleep(1)", [1]),
        ("async def f():\n    await asyncio.sleep(0.1)", [2]),
        ("async def f():\n    await asyncio.sleep(0)", []),
        ("time.sleep(1)  # the client's pace", []),
        ("sleep(1)", [1]),
    ],
)
def test_a_sleep_without_a_reason_is_noticed(source, found):
    assert sleeps(source) == found


def test_helpers_stand_in_a_folder():
    assert [path.name for path in TESTS.glob("*.py") if not re.match(r"test_|conftest", path.name)] == []
