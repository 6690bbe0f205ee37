"""Bundles for truss, and `trt_llm` blocks."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import ROOT

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TRUSS_NO_UPDATE_CHECK": "1", "DISABLE_JSON_LOGGING": "1"}
REPOSITORY = {"source": "HF", "repo": "org/name"}
BUILD = "import sys; from truss.cli.cli import truss_cli; truss_cli(['image', 'build-context', *sys.argv[1:]])"


def copy_bundle(target: Path, config: dict) -> Path:
    target.mkdir()
    for name in ("model", "packages", "data"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


def block(base_model: str = "encoder_bert") -> dict[str, Any]:
    build = {"base_model": base_model, "checkpoint_repository": dict(REPOSITORY)}
    return {"inference_stack": "v1", "build": build, "runtime": {"webserver_default_route": "/v1/embeddings"}}


def with_value(path: str, value: Any, base_model: str = "encoder_bert") -> dict[str, Any]:
    made = copy.deepcopy(block(base_model))
    *parents, last = path.split(".")
    place = made
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return made
