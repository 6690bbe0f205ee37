"""`bei serve --config a.yaml --config b.yaml`: one port, an engine's process for each model, and any number of
workers."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bei.serving.service import Service
from tests.support.calls import near, post
from tests.support.configs import tiny_config
from tests.support.servers import serving
from tests.support.task_models import KINDS, OWN, start
from tests.support.waiting import wait_until

SERVED = ("embedding", "reranker", "entities")
LIMIT = 30.0


@dataclass
class Server:
    url: str
    process: int
    alone: dict[str, Service]

    def ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=LIMIT)

    def engine(self, kind: str) -> int:
        """The process of the engine of a model: they are started in the order of the models."""
        engines = [pid for pid in _children(self.process) if "bei.engines.child" in _command(pid)]
        return sorted(engines, key=_age)[SERVED.index(kind)]


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _age(pid: int) -> tuple[int, int]:
    """When the process was started; numbers begin again at some time (proc(5), starttime)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]), pid


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[tuple[list[Path], dict[str, Service]]]:
    """A config.yaml for each model, and each model alone."""
    configs, alone = [], {}
    for kind in SERVED:
        folder = tmp_path_factory.mktemp(kind)
        alone[kind] = start(KINDS[kind](folder))
        config = tiny_config(folder)
        config["trt_llm"]["runtime"] = {"served_model_name": kind}
        configs.append(folder.with_suffix(".yaml"))
        configs[-1].write_text(json.dumps(config))
    yield configs, alone
    for service in alone.values():
        service.close()


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def server(request, models, tmp_path_factory) -> Iterator[Server]:
    (first, *others), alone = models
    flags = [flag for config in others for flag in ("--config", str(config))]
    flags += ["--engine", "native", "--precision", "fp32", "--workers", str(request.param), "--alias", "ada=embedding"]
    with serving(*flags, config=first, log=tmp_path_factory.mktemp("log") / "log") as url:
        port = url.rpartition(":")[2]
        (pid,) = (pid for pid in _children(os.getpid()) if f"--port {port} " in _command(pid))
        yield Server(url, pid, alone)


@pytest.mark.parametrize("kind", SERVED)
def test_each_model_answers_as_it_does_alone(server, kind):
    path, body = OWN[kind]
    alone = post(server.alone[kind], path, body)
    if kind == "embedding":
        alone["model"] = kind
    for name in ({}, {"model": kind}):
        reply = server.ask(path, {**body, **name}).json()
        assert near(reply, alone)


def test_calls_of_all_models_at_once_get_their_own_answers(server):
    alone = {kind: post(server.alone[kind], *OWN[kind]) for kind in SERVED if kind != "embedding"}

    def ask(kind: str) -> bool:
        return near(server.ask(*OWN[kind]).json(), alone[kind])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, list(alone) * 50))


def test_an_alias_and_an_unknown_name(server):
    reply = server.ask("/v1/embeddings", {"input": "a", "model": "ada"})
    assert (reply.status_code, reply.json()["model"]) == (200, "embedding")
    reply = server.ask("/v1/embeddings", {"input": "a", "model": "gpt-4"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_the_death_of_one_engine_is_not_seen_by_the_others(server):
    os.kill(server.engine("reranker"), signal.SIGKILL)
    statuses = [server.ask("/v1/embeddings", {"input": "a"}).status_code for _ in range(20)]
    assert statuses == [200] * 20
    wait_until(lambda: server.ask(*OWN["reranker"]).status_code == 200)
    wait_until(lambda: httpx.get(f"{server.url}/health/ready?model=reranker").status_code == 200)


def test_metrics_have_each_model(server):
    text = httpx.get(f"{server.url}/metrics").text
    for kind in SERVED:
        assert f'bei_ready{{model="{kind}"}} 1.0' in text
