"""Prints the packages that bei needs besides torch, or those of an extra (`gpu_needs.py tensorrt`), quoted for a
shell."""

import shlex
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = [need for extra in sys.argv[1:] for need in project["optional-dependencies"][extra]]
print(shlex.join(extras or project["dependencies"]))  # noqa: T201  make reads it
