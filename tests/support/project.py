"""What pyproject.toml and the source say of packages."""

import ast
import tomllib
from collections.abc import Iterator

from tests.support.servers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
IMAGES = {"deploy/requirements.lock": ("otel",), "deploy/requirements.cuda.lock": ("otel", "torch")}
SERVER = ("starlette", "uvicorn", "hypercorn", "granian", "fastapi", "h2", "httptools")
HOME = {
    "torch": ("engines/torch/", "engines/tensorrt/"),  # there it keeps the memory and the streams
    "tensorrt": ("engines/tensorrt/",),
    **dict.fromkeys(SERVER, ("server/",)),
    **dict.fromkeys(("pyarrow", "ray", "tqdm"), ("bulk/",)),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{a.name}" if node.module == "bei" else node.module for a in node.names)
