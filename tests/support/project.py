"""The packages of pyproject.toml, and those that the sources import."""

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
    # TensorRT's engine uses torch for its memory and streams, and a user may ask for tensors.
    "torch": ("engines/torch/", "engines/tensorrt/", "inprocess.py"),
    "tensorrt": ("engines/tensorrt/",),
    **dict.fromkeys(SERVER, ("server/",)),
    "httptools": ("server/", "bench/"),
    "matplotlib": ("bench/",),
    **dict.fromkeys(("pyarrow", "ray"), ("bulk/",)),
    "tqdm": ("progress.py", "inprocess.py"),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names of all imports, anywhere in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{a.name}" if node.module == "bei" else node.module for a in node.names)
