"""The life of the models of a real server: loaded for a request, unloaded again, changed while it runs."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bei.checkpoint.load import read
from tests.support.calls import near, post
from tests.support.configs import tiny_config
from tests.support.servers import serving
from tests.support.task_models import KINDS, OWN, start
from tests.support.tiny_models import random_model, save
from tests.support.waiting import wait_until

LIMIT = 180.0  # seconds: the first load of a machine compiles the engine
FLAGS = ("--engine", "native", "--precision", "fp32")


@dataclass
class Server:
    url: str
    process: int
    log: Path

    def ask(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=LIMIT, headers=headers)

    def embed(self, model: str, **headers: str) -> httpx.Response:
        return self.ask("/v1/embeddings", {"input": "the cat", "model": model}, **headers)

    def states(self) -> dict[str, str]:
        return {of["id"]: of["state"] for of in httpx.get(f"{self.url}/v1/models").json()["data"]}

    def engines(self) -> list[int]:
        """The processes of engines."""
        return [pid for pid in _children(self.process) if "bei.engines.child" in _command(pid)]

    def hang_up(self) -> None:
        os.kill(self.process, signal.SIGHUP)


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def write_config(folder: Path, name: str, **variables: str) -> Path:
    """A config.yaml beside a folder, which serves it under a name."""
    config = {**tiny_config(folder), "environment_variables": variables}
    config["trt_llm"]["runtime"] = {"served_model_name": name}
    path = folder.with_name(f"{name}.yaml")
    path.write_text(json.dumps(config))
    return path


@contextmanager
def server_of(configs: list[Path], log: Path, *flags: str) -> Iterator[Server]:
    others = [flag for config in configs[1:] for flag in ("--config", str(config))]
    with serving(*others, *FLAGS, *flags, config=configs[0], log=log) as url:
        port = url.rpartition(":")[2]
        (pid,) = (pid for pid in _children(os.getpid()) if f"--port {port} " in _command(pid))
        yield Server(url, pid, log)


@pytest.fixture(scope="module")
def embedders(tmp_path_factory) -> dict[str, Path]:
    """Folders of ten embedders that differ."""
    folder = tmp_path_factory.mktemp("embedders")
    return {f"m{i}": save(folder / f"m{i}", random_model("bert", seed=i)) for i in range(10)}


@pytest.fixture(scope="module")
def vectors(embedders) -> dict[str, list[float]]:
    """The answer of each embedder alone."""
    found = {}
    for name, folder in embedders.items():
        service = start(read(folder, name))
        found[name] = asyncio.run(service.model.embed(["the cat"])).rows[0].tolist()
        service.close()
    return found


@pytest.fixture
def run_server(tmp_path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:
        yield lambda configs, *flags: stack.enter_context(server_of(configs, tmp_path / "log", *flags))


def is_right(reply: httpx.Response, vector: list[float]) -> bool:
    return reply.status_code == 200 and near(reply.json()["data"][0]["embedding"], vector)


@pytest.fixture(scope="module", params=["1"], ids="{} workers".format)
def workers(request) -> tuple[str, str]:
    return "--workers", request.param


# -- lazy --------------------------------------------------------------------------------------------------------------


def test_a_lazy_model_is_loaded_for_its_first_requests(run_server, workers, tmp_path):
    configs, alone = [], {}
    for kind in ("embedding", "reranker", "entities"):
        service = start(KINDS[kind](tmp_path / kind))
        alone[kind] = service
        configs.append(write_config(tmp_path / kind, kind))
    server = run_server(configs, "--lazy", *workers)
    assert server.states() == dict.fromkeys(alone, "unloaded") and server.engines() == []
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [of["task"] for of in listed] == list(alone)
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    refused = httpx.get(f"{server.url}/health/ready?model=reranker")
    assert (refused.status_code, "unloaded" in refused.json()["error"]) == (503, True)
    right = post(alone["reranker"], *OWN["reranker"])
    with ThreadPoolExecutor(16) as pool:  # the route alone names the model
        replies = list(pool.map(lambda _: server.ask(*OWN["reranker"]), range(32)))
    assert {reply.status_code for reply in replies} == {200}
    assert all(near(reply.json(), right) for reply in replies)
    assert len(server.engines()) == 1
    assert server.states() == {"embedding": "unloaded", "reranker": "ready", "entities": "unloaded"}
    assert httpx.get(f"{server.url}/info?model=entities").json()["engine"] is None
    assert server.ask("/predict_tokens", OWN["entities"][1]).status_code == 200
    assert httpx.get(f"{server.url}/health/ready?model=entities").status_code == 200
    for service in alone.values():
        service.close()


def test_bounds_while_a_model_is_loaded(run_server, workers, embedders, vectors):
    configs = [write_config(embedders[name], name) for name in ("m0", "m1")]
    server = run_server(configs, "--lazy", "--max-concurrent-requests", "4", *workers)
    assert server.embed("m0", **{"request-timeout-ms": "1"}).status_code == 504
    assert is_right(server.embed("m0"), vectors["m0"])
    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda _: server.embed("m1"), range(40)))
    assert {reply.status_code for reply in replies} == {200, 429}
    assert all(is_right(reply, vectors["m1"]) for reply in replies if reply.status_code == 200)
    assert is_right(server.embed("m1"), vectors["m1"])


def test_a_load_that_fails(run_server, workers, embedders, vectors, tmp_path):
    broken = save(tmp_path / "broken", random_model("bert", seed=1))
    configs = [write_config(embedders["m0"], "m0"), write_config(broken, "broken", BEI_LAZY="true")]
    server = run_server(configs, *workers)
    assert server.states() == {"m0": "ready", "broken": "unloaded"}
    weights = broken / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[: len(kept) // 2])
    for _ in range(2):
        reply = server.embed("broken")
        assert reply.status_code == 503
        assert "the model broken cannot be loaded: " in reply.json()["error"]["message"]
        assert is_right(server.embed("m0"), vectors["m0"])
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    weights.write_bytes(kept)
    wait_until(lambda: is_right(server.embed("broken"), vectors["m1"]))


# -- unloading ---------------------------------------------------------------------------------------------------------


def test_an_idle_model_leaves_and_comes_back(run_server, workers, embedders, vectors):
    configs = [write_config(embedders[name], name) for name in ("m0", "m1")]
    server = run_server(configs, "--idle-unload", "0.5", *workers)
    wait_until(lambda: server.states() == {"m0": "unloaded", "m1": "unloaded"})
    wait_until(lambda: server.engines() == [])
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    for _ in range(20):
        assert is_right(server.embed("m1"), vectors["m1"])
    assert server.states() == {"m0": "unloaded", "m1": "ready"}
