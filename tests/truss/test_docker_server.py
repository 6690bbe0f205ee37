"""examples/docker-server: the start command of its container, run here on the mounted weights."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import yaml

from tests.support.project import DEPENDENCIES, EXTRAS
from tests.support.servers import ROOT, free_port, wait_until_ready
from tests.support.truss_bundles import BUILD, copy_bundle

CONFIG = yaml.safe_load((ROOT / "examples" / "docker-server" / "config.yaml").read_text())
SUPERVISORD_WAITS = 10.0  # stopwaitsecs, where supervisord.conf says nothing


def test_it_reads_the_weights_where_they_are_mounted():
    (weights,) = CONFIG["weights"]
    repository = CONFIG["model_metadata"]["trt_llm"]["build"]["checkpoint_repository"]
    assert repository == {"source": "LOCAL", "repo": weights["mount_location"]}


def test_its_requirements_are_the_package_s():
    assert CONFIG["requirements"] == DEPENDENCIES


def test_on_a_gpu_it_differs_by_the_gpu():
    config = yaml.safe_load((ROOT / "examples" / "docker-server-gpu" / "config.yaml").read_text())
    *same, torch, tensorrt = config["requirements"]
    assert same == DEPENDENCIES
    assert [torch] == EXTRAS["torch"]
    assert tensorrt.startswith("tensorrt-cu13==")
    assert config["environment_variables"] == {"BEI_ENGINE": "tensorrt"}
    ours = ("model_name", "resources", "runtime", "environment_variables", "requirements")
    rest, others = ({key: value for key, value in of.items() if key not in ours} for of in (config, CONFIG))
    assert rest == others


def test_its_start_command_serves_and_drains(in_truss, tmp_path, tiny_folder):
    bundle, context = copy_bundle(tmp_path / "bundle", mounted(tiny_folder)), tmp_path / "context"
    in_truss(BUILD, str(context), str(bundle))
    port = free_port()
    command = start_command(context, port)
    assert float(command[-1].partition("--drain-seconds ")[2].split()[0]) < SUPERVISORD_WAITS
    log = tmp_path / "log"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "BEI_ENGINE": "null"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        server, url = CONFIG["docker_server"], f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log, path=server["readiness_endpoint"])
        assert httpx.get(url + server["liveness_endpoint"]).status_code == 200
        answer = httpx.post(url + server["predict_endpoint"], json={"input": "a"}).json()
        assert answer["model"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert len(answer["data"][0]["embedding"]) == 48
        process.terminate()
        assert process.wait(timeout=SUPERVISORD_WAITS) == 0
    finally:
        process.kill()
        process.wait()


def mounted(folder: Path) -> dict:
    """The config, with its weights in a folder of this machine."""
    (weights,) = CONFIG["weights"]
    return yaml.safe_load(yaml.safe_dump(CONFIG).replace(weights["mount_location"], str(folder)))


def start_command(context: Path, port: int) -> list[str]:
    """supervisord's command, with the container's paths and port replaced by this machine's."""
    supervisor = (context / "supervisord.conf").read_text()
    line = next(line for line in supervisor.splitlines() if line.startswith("command = sh -c") and "bei.cli" in line)
    for there, here in {
        "/packages": context / "packages",
        "/app/config.yaml": context / "config.yaml",
        "0.0.0.0": "127.0.0.1",
        "8000": port,
    }.items():
        assert there in line
        line = line.replace(there, str(here))
    return shlex.split(line.partition("= ")[2])
