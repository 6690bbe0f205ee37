"""`truss push` of each example for Baseten, to a stand-in of its API: what is uploaded, and that it answers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.baseten import baseten
from tests.support.project import EXTRAS
from tests.support.servers import ROOT
from tests.support.shared import once
from tests.support.truss_bundles import ENVIRONMENT
from tests.support.truss_servers import truss_server

PUSH = """
import sys
from truss.cli.cli import truss_cli
root, *configs = sys.argv[1:]
for config in configs:
    truss_cli.main(["push", root, "--config", config], standalone_mode=False)
"""
ON_TRUSS = ("model-py/config.yaml", "model-py-gpu/config.yaml", "model-py-gpu/h100.yaml")
EXAMPLES = (*ON_TRUSS, "docker-server/config.yaml", "docker-server-gpu/config.yaml")
KEY = "key-of-a-test"


def of(example: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples" / example).read_text())


@pytest.fixture(scope="module")
def pushed(truss_python, of_all_workers) -> Path:
    """A folder for each example, by its model's name: the bundle as it was uploaded, and sent.json."""

    def make(folder: Path) -> None:
        with baseten() as stand_in:
            variables = {"BASETEN_TRUSS_AUTH_REMOTE_URL": stand_in.url, "BASETEN_TRUSS_AUTH_API_KEY": KEY}
            environment = {**ENVIRONMENT, **variables, "HOME": str(folder)}
            files = [str(ROOT / "examples" / example) for example in EXAMPLES]
            command = [truss_python, "-c", PUSH, str(ROOT), *files]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        for name, push in stand_in.pushes.items():
            push.unpack(folder / name / "bundle")
            sent = {"config": push.config, "file": push.file, "authorization": push.authorization}
            (folder / name / "sent.json").write_text(json.dumps(sent))

    return once(of_all_workers / "truss-push", make)


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_is_uploaded_is_the_bundle_with_this_config(example, pushed):
    config, file = of(example), (ROOT / "examples" / example).read_text()
    folder = pushed / config["model_name"]
    sent = json.loads((folder / "sent.json").read_text())
    assert {key: sent["config"][key] for key in ("model_name", "requirements")} == {
        key: config[key] for key in ("model_name", "requirements")
    }
    assert KEY in sent["authorization"]
    bundle = folder / "bundle"
    assert sent["file"] == (bundle / "config.yaml").read_text() == file
    for folder in ("model", "packages", "data"):
        here = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if is_source(path)}
        there = {path.relative_to(bundle) for path in (bundle / folder).rglob("*") if path.is_file()}
        assert here == there
        assert all((ROOT / path).read_bytes() == (bundle / path).read_bytes() for path in here)
    kept = (".venv", ".models", ".git/", ".bench")
    assert not [path.name for path in bundle.iterdir() if f"{path.name}/".startswith(kept)]


def is_source(path: Path) -> bool:
    made = {"__pycache__", "built"}
    return path.is_file() and not made & {part.name for part in path.parents} and path.suffix != ".pyc"


def test_its_model_py_answers_in_the_real_server(pushed, in_truss: Callable[..., str], truss_python, tmp_path):
    """From the very archive, whose files beside config.yaml are those of the others. A GPU's config is served by
    processors: the test's BEI_ENGINE overrides its own."""
    bundle = pushed / of(ON_TRUSS[1])["model_name"] / "bundle"
    with truss_server(in_truss, truss_python, tmp_path, bundle) as url:
        body = {"input": "What is Deep Learning?", "dimensions": 4}
        for path in ("/v1/models/model:predict", "/v1/embeddings"):
            vector = httpx.post(url + path, json=body, timeout=60).json()["data"][0]["embedding"]
            assert vector == pytest.approx([-0.893, -0.382, 0.221, 0.085], abs=0.01)


@pytest.mark.parametrize("name", ON_TRUSS[1:])
def test_on_a_gpu_it_installs_tensorrt_beside_what_the_processors_need(name):
    own, gpu = of(ON_TRUSS[0]), of(name)
    added = gpu["requirements"][len(own["requirements"]) :]
    assert gpu["requirements"] == own["requirements"] + added
    assert [added[0]] == EXTRAS["torch"]
    assert added[1].startswith("tensorrt-cu13==")
    assert gpu["environment_variables"] == {"BEI_ENGINE": "tensorrt"}
    assert gpu["resources"]["accelerator"] == ("H100" if "h100" in name else "L4")
