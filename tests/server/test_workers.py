"""`bei serve --workers 2`, a tree of processes over a real socket: one queue; a dead process is replaced."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.servers import BEI, free_port, wait_until_ready
from tests.support.waiting import wait_until

LIMIT = 60.0
TEXTS = ["What is Deep Learning?", "a cat", "The quick brown fox jumps over the lazy dog."]


class Tree:
    """A server and its processes."""

    def __init__(self, folder: Path, log: Path, *flags: str):
        self.log, self.port = log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = log.with_suffix(".yaml")
        repository = {"source": "LOCAL", "repo": str(folder)}
        build = {"base_model": "encoder_bert", "checkpoint_repository": repository}
        config.write_text(json.dumps({"trt_llm": {"build": build}}))
        command = [str(BEI), "serve", "--config", str(config), "--port", str(self.port), "--workers", "2", *flags]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def wait_until_ready(self) -> None:
        wait_until_ready(self.url, self.process, self.log)

    def pids(self, module: str) -> set[int]:
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and module.encode() in stat.with_name("cmdline").read_bytes():
                    found.add(int(stat.parent.name))
            except OSError:
                continue
        return found

    @property
    def workers(self) -> set[int]:
        return self.pids("bei.server.workers")

    @property
    def engines(self) -> set[int]:
        return self.pids("bei.engines.child")

    def embed(self, texts: list[str] = TEXTS) -> np.ndarray:
        answer = httpx.post(f"{self.url}/embed", json={"inputs": texts}, timeout=LIMIT)
        assert answer.status_code == 200, answer.text
        return np.array(answer.json(), np.float32)


@pytest.fixture
def tree(tiny_folder, tmp_path):
    """tree(*flags): a server of two workers that is ready."""
    made = []

    def make(*flags: str) -> Tree:
        made.append(Tree(tiny_folder, tmp_path / f"{len(made)}.log", "--engine", "null", *flags))
        made[-1].wait_until_ready()
        return made[-1]

    yield make
    for server in made:
        server.process.kill()
        server.process.wait()


def in_threads(count: int, work: Callable[[], None]) -> None:
    failures = []

    def guarded() -> None:
        try:
            work()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not failures, failures[0]


def test_both_answer_the_same_and_count_together(tree):
    server = tree()
    expected = server.embed()
    in_threads(16, lambda: np.testing.assert_array_equal(server.embed(), expected))
    assert len(server.workers) == 2
    metrics = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'te_request_count{method="batch",model="[^"]+"} 17.0\n', metrics)
    assert re.search(r'bei_queue_tokens{model="[^"]+"} 0.0\n', metrics)
    server.process.terminate()
    assert server.process.wait(LIMIT) == 0, server.log.read_text()


def test_a_worker_that_is_killed_is_replaced(tree):
    server = tree()
    expected, (killed, _) = server.embed(), server.workers
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(server.workers) == 2 and killed not in server.workers)
    for _ in range(20):
        np.testing.assert_array_equal(server.embed(), expected)


def test_an_engine_that_dies_is_replaced(tree):
    server = tree()
    expected, (engine,) = server.embed(), server.engines
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: server.engines - {engine})
    wait_until(lambda: httpx.get(f"{server.url}/health/ready", timeout=LIMIT).status_code == 200)
    np.testing.assert_array_equal(server.embed(), expected)


def test_sigterm_leaves_no_call_without_an_answer(tree):
    server = tree()
    body = json.dumps({"inputs": TEXTS}).encode()
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        clients = []
        for _ in range(6):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), LIMIT)))
            clients[-1].sendall(head + body[:10])
        server.process.terminate()
        wait_until(lambda: server.log.read_text().count("SIGTERM: draining") == 2)
        for client in clients:
            client.sendall(body[10:])
        for client in clients:
            answer = client.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in answer
    assert server.process.wait(LIMIT) == 0, server.log.read_text()


def test_a_server_that_is_killed_leaves_no_process_and_no_port(tree):
    server = tree()
    everybody = server.workers | server.engines
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everybody))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", server.port))


def test_a_model_that_cannot_be_loaded_ends_all(tmp_path):
    server = Tree(tmp_path / "nothing", tmp_path / "log")
    assert server.process.wait(LIMIT) == 2
    assert "is not a folder" in server.log.read_text()
    assert not server.workers
