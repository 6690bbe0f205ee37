"""Every package that the code imports is declared in pyproject.toml, and every declared one is imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.project import DEPENDENCIES, EXTRAS, HOME, imports

ROOT = Path(__file__).parents[1]
OURS = {"bei", "tests", "benchmarks", "deploy", "docs"}
NAMES = {"yaml": "pyyaml", "grpc": "grpcio", "opentelemetry": "opentelemetry-exporter-otlp"}
"""Packages whose import name differs from the index's."""
UNDECLARED = {"datasets", "mteb"}  # without it the command reports that it is missing, and the remedy
# Fsspec imports the first three, engines/tensorrt/api.py the last.
BY_NAME = {"s3fs", "gcsfs", "adlfs", "tensorrt-rtx-cu13"}
PRIVATE = {
    **{"_strip_protocol": "fsspec", "_upper_bounds": "prometheus-client", "_buckets": "prometheus-client"},
    **{"_unset_keepalive_if_required": "uvicorn"},
    **dict.fromkeys(("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_dynamo", "_scaled_mm"), "torch"),
    **dict.fromkeys(("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"), "torch"),
}
"""The private names of packages that we use."""
BOUNDED = sorted({*PRIVATE.values(), "h2", "huggingface-hub"})
"""Packages whose private names or undocumented behavior we rely on: each new series is tried before it is allowed."""
OTHER_ENVIRONMENTS = ("tests/clients/calls.py", "tests/truss/requirements.py")
ONLY_OF_A_SERVER = (
    *("engines/native/prebuilt.py", "server/", "cli.py", "launch.py", "options.py", "router.py"),
    *("bench/", "doctor/", "evaluate/", "commands/"),
)


class _Outside(ast.NodeTransformer):
    """A module without its functions."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...


def declared(*lists: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for lines in lists for line in lines} - {"bei"}


def imported(folder: Path, of: str = "anywhere") -> Iterator[tuple[str, str]]:
    """Each file under `folder` with the packages that it imports, in functions or at the top."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for top in {name.partition(".")[0] for name in imports(tree if of == "anywhere" else _Outside().visit(tree))}:
            if top not in sys.stdlib_module_names and top not in OURS:
                yield path.relative_to(folder).as_posix(), top


def distribution(top: str) -> str:
    return canonicalize_name(NAMES.get(top, top))


def missing(imports: Iterator[tuple[str, str]], requirements: set[str]) -> list[str]:
    return [f"{path} imports {top}" for path, top in imports if distribution(top) not in requirements]


PACKAGE = ROOT / "packages" / "bei"
NEEDED = declared(DEPENDENCIES)
OPTIONAL = declared(*(EXTRAS[extra] for extra in EXTRAS if extra not in ("test", "mutation")))


def test_the_package_s_imports_are_declared():
    assert missing(imported(PACKAGE), NEEDED | OPTIONAL | UNDECLARED) == []


def test_an_extra_is_imported_where_it_is_needed():
    """So that a server starts without the extra."""
    at_once = [(path, top) for path, top in imported(PACKAGE, "at once") if not path.startswith(HOME.get(top, "/"))]
    assert missing(iter(at_once), NEEDED) == []


def test_what_is_declared_is_imported():
    assert (NEEDED | OPTIONAL) - {distribution(top) for _, top in imported(PACKAGE)} == BY_NAME


def test_the_tests_imports_are_declared():
    found = ((path, top) for path, top in imported(ROOT / "tests") if f"tests/{path}" not in OTHER_ENVIRONMENTS)
    assert missing(found, NEEDED | OPTIONAL | declared(EXTRAS["test"])) == []


@pytest.mark.parametrize("name", BOUNDED)
def test_what_promises_nothing_has_an_upper_bound(name):
    needs = map(Requirement, [*DEPENDENCIES, *EXTRAS["torch"]])
    (wanted,) = [need for need in needs if canonicalize_name(need.name) == name]
    assert [part.operator for part in wanted.specifier if part.operator != ">="] in (["<"], ["=="])


def private_names() -> set[str]:
    """Attributes with one underscore before them that no file of ours defines, and private imports."""
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - defined
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("bei"):
            used |= {*(node.module or "").split("."), *(name.name for name in node.names)}
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def test_a_private_name_of_a_package_is_listed_with_it():
    assert private_names() == PRIVATE.keys()


def test_the_bundle_with_a_model_py_needs_all_but_what_a_server_needs():
    listed = yaml.safe_load((ROOT / "examples/model-py/config.yaml").read_text())["requirements"]
    assert set(listed) <= set(DEPENDENCIES)
    elsewhere = {distribution(top) for path, top in imported(PACKAGE) if not path.startswith(ONLY_OF_A_SERVER)}
    assert declared(listed) == NEEDED & elsewhere


def test_what_is_not_declared_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text("import os\n\nimport yaml\n\n\ndef read():\n    from starlette import types\n")
    assert missing(imported(tmp_path), NEEDED) == ["new.py imports starlette"]
    assert missing(imported(tmp_path, "at once"), NEEDED) == []
