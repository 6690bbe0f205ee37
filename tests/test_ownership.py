"""State has an owner: an object made at start and passed down. No module holds state, so two servers of one process,
and two tests, share none."""

import ast
import csv
from collections.abc import Iterator

import pytest

from bei.bulk.inputs import LONGEST, reader, take_long_fields
from tests.support.servers import ROOT

PACKAGE = ROOT / "packages" / "bei"
STATEFUL = {
    *("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore", "Thread", "Timer", "local"),
    *("ThreadPoolExecutor", "ProcessPoolExecutor", "Queue", "SimpleQueue", "PriorityQueue", "LifoQueue"),
    *("Counter", "Gauge", "Histogram", "Summary", "CollectorRegistry", "deque", "defaultdict", "socket", "count"),
}
CHANGING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove"),
    *("setdefault", "sort", "update"),
}
NOT_OURS = {
    "engines/torch/graphs.py: _RECORDING is made by Lock": "CUDA records one graph at a time in a process",
}


def held(module: str, source: str) -> Iterator[str]:
    """The mutable state of a module."""
    tree = ast.parse(source)
    own = {target.id: node.value for node in tree.body for target in _targets(node) if isinstance(target, ast.Name)}
    for name, value in own.items():
        if isinstance(value, ast.Call) and _last(value.func) in STATEFUL:
            yield f"{module}: {name} is made by {_last(value.func)}"
        if isinstance(value, ast.Dict | ast.List) and not ast.unparse(value).strip("{}[]"):
            yield f"{module}: {name} is empty, and to be filled"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{module}: global {', '.join(node.names)}"
        for changed, how in _changed(node):
            if isinstance(changed, ast.Name) and changed.id in own:
                yield f"{module}: {changed.id}{how}"


def _changed(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """The names that a statement changes, and how."""
    yield from ((target.value, "[...] is set") for target in _targets(node) if isinstance(target, ast.Subscript))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        yield node.func.value, f".{node.func.attr}"


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_module_holds_state():
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}
    found = {said for module, source in files.items() for said in held(module, source)}
    assert found == NOT_OURS.keys()


@pytest.mark.parametrize(
    "source",
    [
        "def start():\n    global _tracer\n    _tracer = 1",
        "_lock = threading.Lock()",
        "_pool: ThreadPoolExecutor = ThreadPoolExecutor(2)",
        "requests = Counter('a', 'b')",
        "_paths: list[str] = []",
        "_SEEN = {1: 2}\n\n\ndef note(x):\n    _SEEN[x] = 1",
        "_SEEN = {1, 2}\n\n\ndef note(x):\n    _SEEN.add(x)",
    ],
)
def test_the_law_bites(source):
    assert list(held("m", source))


def test_a_table_is_no_state():
    assert not list(held("m", "_NAMES = {'a': 1}\n_MOST = 3\n\n\ndef f(x):\n    y = []\n    y.append(x)\n    return y"))


@pytest.fixture
def limit() -> Iterator[int]:
    kept = csv.field_size_limit()
    yield kept
    csv.field_size_limit(kept)


def test_a_reader_of_csv_leaves_the_limit_of_the_process_to_whoever_owns_that(limit):
    reader(".csv")
    assert csv.field_size_limit() == limit
    take_long_fields()
    assert csv.field_size_limit() == LONGEST
