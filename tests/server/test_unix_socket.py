"""A server on a Unix socket: who may connect, an existing file in its place, and the state afterwards."""

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from bei.errors import SetupError
from bei.server import listen
from tests.support.configs import tiny_config
from tests.support.waiting import wait_until

LIMIT = 40.0


@contextmanager
def serving(folder: Path, path: Path, workers: int, *flags: str) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    config = path.parent / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config(folder)))
    words = ["serve", "--config", str(config), "--engine", "null", "--uds-path", str(path), "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bei.cli", *words, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            wait_until(lambda: process.poll() is not None or ready(client, path))
            assert process.poll() is None, process.stdout.read()
            yield process, client
    finally:
        process.kill()
        process.communicate()


def ready(client: httpx.Client, path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)):
            return False
    return client.get("/health").status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_on_a_socket(tiny_folder, tmp_path, workers):
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # as a server that was killed leaves it
    with serving(tiny_folder, path, workers, "--cors-allow-origin", "*") as (process, client):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert len(client.post("/embed", json={"inputs": "the cat"}).json()[0]) == 48
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        reply = client.options("/embed", headers=asked)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, "*")
        assert "content-length" not in reply.headers
        with pytest.raises(SetupError, match=r"setting uds_path: cannot listen on .*in use"):
            listen.bind_path(path)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert f"curl -s --unix-socket {path} http://localhost/v1/embeddings" in output
    assert not path.exists()


def test_what_is_no_socket_is_left_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(SetupError, match="setting uds_path: cannot listen on"):
        listen.bind_path(path)
    assert path.read_text() == "precious"
    with pytest.raises(SetupError, match="setting uds_path: cannot listen on"):
        listen.bind_path(tmp_path / ("x" * 200))


def test_a_socket_that_another_server_made_since_is_left(tmp_path):
    path = tmp_path / "s"
    first = listen.bind_path(path)
    path.rename(tmp_path / "elsewhere")
    second = socket.socket(socket.AF_UNIX)
    second.bind(str(path))
    listen.remove_path(first)
    first.close()
    second.close()
    assert path.exists()
