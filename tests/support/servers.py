"""A real server in its own process, on a real socket."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
BEI = Path(sys.executable).with_name("bei")


def free_port() -> int:
    """One that the system gives to no client meanwhile (ip(7), ip_local_port_range), and Ray to no worker."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextmanager
def serving(
    *flags: str,
    log: Path,
    config: Path = ROOT / "config.yaml",
    program: Sequence[object] = (BEI,),
    environment: Mapping[str, str] = os.environ,
    timeout: float = 180,
) -> Iterator[str]:
    """The base URL of a `bei serve` that is ready within so many seconds. SIGTERM stops it, and it must exit with 0.
    `program` is bei's."""
    port = free_port()
    command = [*map(str, program), "serve", "--config", str(config), "--port", str(port), *flags]
    environment = {**environment, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log, timeout)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def wait_until_ready(
    url: str, process: subprocess.Popen, log: Path, timeout: float = 180, path: str = "/health"
) -> None:
    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(url + path, timeout=5).status_code == 200
        return False

    wait_until(ready, timeout, log.read_text)
