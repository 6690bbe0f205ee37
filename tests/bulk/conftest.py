"""A config.yaml of a tiny embedding model, the command as users run it, and a Ray of one node."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.bulk_jobs import QUIET
from tests.support.configs import tiny_config
from tests.support.servers import free_port
from tests.support.waiting import wait_until

Command = Callable[..., list[str]]


@pytest.fixture(scope="session")
def config(tmp_path_factory, tiny_folder) -> Path:
    file = tmp_path_factory.mktemp("bulk") / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    return file


@pytest.fixture(scope="session")
def command(config) -> Command:
    """The words of a `bei embed`."""

    def words(source: Path, output: Path, *flags: str) -> list[str]:
        embed = [sys.executable, "-m", "bei.cli", "embed", str(source), str(output), "--config", str(config)]
        return [*embed, "--engine", "native", "--precision", "fp32", "--threads", "1", "--log-level", "warning", *flags]

    return words


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory) -> Iterator[str]:
    address, log = f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("ray") / "log"
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus", "2", "--block"]
    quiet = ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"]
    with log.open("w") as output:
        head = subprocess.Popen(
            [*start, *quiet, "--port", address.partition(":")[2]], env=QUIET, stdout=output, stderr=subprocess.STDOUT
        )
    wait_until(lambda: head.poll() is not None or "Ray runtime started" in log.read_text(), 120, log.read_text)
    assert head.poll() is None, log.read_text()
    yield address
    head.kill()  # its reaper ends the other processes at once
    head.wait()
