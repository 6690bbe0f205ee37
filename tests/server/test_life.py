"""The life of the models of a real server: loaded for a request, unloaded again, changed while it runs."""

import asyncio
import json
import os
import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from bei import memory
from bei.checkpoint.load import read
from bei.serving.service import Service
from bei.settings import Settings
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

    def is_ready(self) -> dict[str, float]:
        """`bei_ready` by model."""
        text = httpx.get(f"{self.url}/metrics").text
        return {
            name: float(value) for name, value in re.findall(r'^bei_ready\{model="(.*)"\} (.*)$', text, re.MULTILINE)
        }

    def engines(self) -> list[int]:
        """The processes of engines."""
        return [pid for pid in _children(self.process) if "bei.engines.child" in _command(pid)]

    def hang_up(self) -> None:
        os.kill(self.process, signal.SIGHUP)


def _children(parent: int) -> list[int]:
    """Those that any thread started."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in _text(task).split()]


def _command(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


def _text(path: Path) -> str:
    """Empty for a process that has ended."""
    try:
        return path.read_text()
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
        logs = (tmp_path / f"log{i}" for i in count())
        yield lambda configs, *flags: stack.enter_context(server_of(configs, next(logs), *flags))


def is_right(reply: httpx.Response, vector: list[float]) -> bool:
    return reply.status_code == 200 and near(reply.json()["data"][0]["embedding"], vector)


@pytest.fixture(scope="module", params=["1", "2"], ids="{} workers".format)
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
    assert server.is_ready() == dict.fromkeys(alone, 1)  # for a request loads the rest
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
    wait_until(lambda: server.is_ready() == {"m0": 1, "broken": 0})
    weights.write_bytes(kept)
    wait_until(lambda: is_right(server.embed("broken"), vectors["m1"]))
    assert server.is_ready() == {"m0": 1, "broken": 1}


# -- unloading ---------------------------------------------------------------------------------------------------------


def test_an_idle_model_leaves_and_comes_back(run_server, workers, embedders, vectors):
    configs = [write_config(embedders[name], name) for name in ("m0", "m1")]
    server = run_server(configs, "--idle-unload", "0.5", *workers)
    wait_until(lambda: server.states() == {"m0": "unloaded", "m1": "unloaded"})
    wait_until(lambda: server.engines() == [])
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    assert server.is_ready() == {"m0": 1, "m1": 1}
    for _ in range(20):
        assert is_right(server.embed("m1"), vectors["m1"])
    comes_back = {"m0": "unloaded", "m1": "ready"}  # a slow machine may unload it before it is looked at
    wait_until(lambda: is_right(server.embed("m1"), vectors["m1"]) and server.states() == comes_back)


@pytest.fixture(scope="module")
def budget(embedders, tmp_path_factory) -> int:
    """The bytes of three and a half of the ten models. They are measured in processes that find the library and their
    plans: one that compiles or packs is larger."""
    configs = [write_config(embedders[name], name) for name in embedders]
    for folder in embedders.values():
        make_plan(folder)
    with server_of(configs[:4], tmp_path_factory.mktemp("budget") / "log") as server:
        return int(3.5 * memory.of_processes(server.engines()) / 4)


def make_plan(folder: Path) -> None:
    service = Service(Settings.load(tiny_config(folder), engine="native", precision="fp32"))
    service.load()
    service.close()


def test_ten_models_within_a_budget_for_three(run_server, workers, embedders, vectors, budget):
    """As many models are loaded as fit: one more would not."""
    configs = [write_config(embedders[name], name) for name in embedders]
    server = run_server(configs, "--memory-budget", str(budget), *workers)
    each = []
    stop = threading.Event()

    def sizes() -> list[int]:
        """Of the engines."""
        return [memory.of_processes([pid]) for pid in server.engines()]

    def is_full() -> bool:
        each.append(sizes())
        return sum(each[-1]) <= budget < sum(each[-1]) + max(each[-1])

    assert is_full(), (budget, each)

    def watch() -> None:
        while not stop.is_set():
            each.append(sizes())

    def ask(seed: int) -> bool:
        names = random.Random(seed).choices(list(embedders), k=3)
        return all(is_right(server.embed(name), vectors[name]) for name in names)

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
    stop.set()
    watching.join()
    one_more = 1.2 * max(size for of_one_look in each for size in of_one_look)
    assert max(map(sum, each)) < budget + one_more
    assert is_full(), (budget, each[-1])
    loaded = len(server.engines())
    assert 1 < loaded < 10
    assert Counter(server.states().values()) == {"ready": loaded, "unloaded": 10 - loaded}


# -- by its operator ---------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_and_unloaded_by_hand(run_server, workers, embedders, vectors):
    configs = [write_config(embedders[name], name, BEI_LAZY=lazy) for name, lazy in (("m0", "false"), ("m1", "true"))]
    server = run_server(configs, *workers)
    for _ in range(2):
        reply = server.ask("/models/m1/load", {})
        assert (reply.status_code, reply.json()) == (200, {"id": "m1", "state": "ready"})
    assert len(server.engines()) == 2
    for name in ("m0", "m1", "m1"):
        reply = server.ask(f"/models/{name}/unload", {})
        assert (reply.status_code, reply.json()) == (200, {"id": name, "state": "unloaded"})
    assert server.engines() == []
    assert is_right(server.embed("m0"), vectors["m0"])
    assert server.states() == {"m0": "ready", "m1": "unloaded"}
    for path in ("/models/any/load", "/models/m2/unload", "/models/m2/load"):
        assert server.ask(path, {}).status_code == 404
    assert httpx.get(f"{server.url}/models/m0/unload").status_code == 405
    refused = server.ask("/models/m0/unload", {}, origin="https://page.example")
    assert (refused.status_code, "pages may not" in refused.json()["error"]) == (403, True)
    assert server.states()["m0"] == "ready"


def test_a_model_whose_engine_hangs_is_unloaded(run_server, workers, embedders, vectors):
    server = run_server([write_config(embedders["m0"], "m0")], "--drain-seconds", "0.5", *workers)
    assert is_right(server.embed("m0"), vectors["m0"])
    (engine,) = server.engines()
    os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.embed, "m0") for _ in range(8)]
        wait_until(lambda: _in_flight(server) == 8)
        assert server.ask("/models/m0/unload", {}).json() == {"id": "m0", "state": "unloaded"}
        replies = [of.result() for of in asked]
    told = "the model m0 was unloaded before it answered this; send it again"
    assert {(reply.status_code, reply.headers["retry-after"]) for reply in replies} == {(503, "1")}
    assert {reply.json()["message"] for reply in replies} == {told}
    assert is_right(server.embed("m0"), vectors["m0"])


def _in_flight(server: Server) -> int:
    """The calls whose bodies are read and that have no answer yet, over all workers."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("bei_requests_in_flight{"))


def test_models_are_loaded_and_unloaded_behind_a_key(run_server, embedders):
    config = write_config(embedders["m0"], "m0")
    server = run_server([config], "--lazy", "--api-key", "secret", "--host", "0.0.0.0")
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer secret"}, 200),
    ):
        for action in ("load", "unload"):
            assert server.ask(f"/models/m0/{action}", {}, **headers).status_code == status


@pytest.mark.parametrize("flags", [("--host", "0.0.0.0"), ("--allowed-host", "api.example.com")])
def test_without_a_key_only_this_machine_loads_and_unloads(run_server, embedders, flags):
    server = run_server([write_config(embedders["m0"], "m0")], "--lazy", *flags)
    for action in ("load", "unload"):
        refused = server.ask(f"/models/m0/{action}", {})
        assert (refused.status_code, "--api-key-file" in refused.json()["error"]) == (403, True)
    assert server.states() == {"m0": "unloaded"}


# -- SIGHUP ------------------------------------------------------------------------------------------------------------


@contextmanager
def traffic(server: Server, vectors: dict[str, list[float]], *names: str) -> Iterator[None]:
    """Requests for these models all the time; each must get its answer."""
    stop, wrong = threading.Event(), []

    def ask(name: str) -> int:
        asked = 0
        while not stop.is_set():
            reply = server.embed(name)
            asked += 1
            if not is_right(reply, vectors[name]):
                wrong.append((name, reply.status_code, reply.text[:200]))
        return asked

    with ThreadPoolExecutor(2 * len(names)) as pool:
        asking = [pool.submit(ask, name) for name in names * 2]
        try:
            yield
        finally:
            stop.set()
    assert wrong == []
    assert all(of.result() > 0 for of in asking)


def test_the_configs_are_read_again_at_sighup(run_server, workers, embedders, vectors, tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"

    def models(*names: str, **variables: str) -> None:
        """The first in a file of its own."""
        first, *others = (
            {**tiny_config(embedders[name]), "environment_variables": {"BEI_SERVED_MODEL_NAME": name, **variables}}
            for name in names
        )
        one.write_text(json.dumps(first))
        other.write_text(json.dumps({"model_metadata": {"models": others}}))

    models("m0", "m1", "m2")
    server = run_server([one, other], *workers)
    before = server.engines()
    with traffic(server, vectors, "m0", "m1"):
        server.hang_up()  # nothing changed
        wait_until(lambda: "0 models begin, 0 end, 3 stay" in server.log.read_text())
        assert server.engines() == before
        models("m0", "m1")  # one removed
        server.hang_up()
        wait_until(lambda: len(server.engines()) == 2)
        assert set(server.engines()) < set(before)
        assert server.states() == {"m0": "ready", "m1": "ready"}
        assert server.embed("m2").status_code == 404
        models("m0", "m1", "m3")  # one added
        server.hang_up()
        wait_until(lambda: server.states().get("m3") == "ready" and is_right(server.embed("m3"), vectors["m3"]))
        one.write_text("trt_llm: [")  # one broken
        server.hang_up()
        wait_until(lambda: "the configs are not taken over: " in server.log.read_text())
        assert list(server.states()) == ["m0", "m1", "m3"]
        models("m0", "m1", "m3", BEI_MAX_CLIENT_BATCH_SIZE="7")  # of the server
        server.hang_up()
        wait_until(
            lambda: "--max-client-batch-size: the change from 2048 to 7 needs a restart" in server.log.read_text()
        )
        wait_until(lambda: server.log.read_text().count("0 models begin, 0 end, 3 stay") == 2)
        was = server.engines()
        models("m0", "m1", BEI_ALIAS="x=m1", BEI_MAX_BATCH_SIZE="3")  # all changed, one removed
        server.hang_up()
        wait_until(lambda: list(server.states()) == ["m0", "m1"] and not set(server.engines()) & set(was))
        assert len(server.engines()) == 2
        assert is_right(server.embed("x"), vectors["m1"])
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    wait_until(lambda: server.is_ready() == {"m0": 1, "m1": 1})  # no other model is left


def test_a_model_that_cannot_be_loaded_changes_nothing(run_server, workers, embedders, vectors, tmp_path):
    broken = save(tmp_path / "broken", random_model("bert", seed=1))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = write_config(embedders["m0"], "m0")
    server = run_server([config], *workers)
    before = server.engines()
    with traffic(server, vectors, "m0"):
        write_config(broken, "m0").rename(config)
        server.hang_up()
        wait_until(lambda: "the configs are not taken over: " in server.log.read_text())
        wait_until(lambda: server.engines() == before)
    assert is_right(server.embed("m0"), vectors["m0"])


def test_a_server_goes_on_when_its_terminal_closes(run_server, embedders, vectors):
    """The terminal sends SIGHUP to the engine, too."""
    server = run_server([write_config(embedders["m0"], "m0")])
    for pid in (*server.engines(), server.process):
        os.kill(pid, signal.SIGHUP)
    wait_until(lambda: "1 stay" in server.log.read_text())
    assert is_right(server.embed("m0"), vectors["m0"]) and "died" not in server.log.read_text()
