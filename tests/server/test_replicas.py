"""`bei serve --devices cpu:0,cpu:1` over a real socket: one queue, and a process of its own for each device."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.configs import tiny_config
from tests.support.servers import BEI, free_port, wait_until_ready
from tests.support.waiting import LIMIT, wait_until

PAIR = sorted(os.sched_getaffinity(0))[:2]
NAMES = [f"cpu:{number}" for number in PAIR]
BODY = {"inputs": ["What is Deep Learning?", "a cat"]}
CLIENTS = 4

pytestmark = pytest.mark.skipif(len(PAIR) < 2, reason="needs two processors")


class Server:
    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process, self.url, self.log = process, f"http://127.0.0.1:{port}", log

    def engine(self, device: str) -> int:
        """The process of a device."""
        number = int(device.partition(":")[2])
        (found,) = (pid for pid in self._engines() if os.sched_getaffinity(pid) == {number})
        return found

    def _engines(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for of_thread in children for pid in of_thread.read_text().split()]
        return [pid for pid in pids if b"bei.engines.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def embed(self) -> int:
        return httpx.post(f"{self.url}/embed", json=BODY, timeout=LIMIT).status_code

    def ready(self) -> int:
        return httpx.get(f"{self.url}/health/ready", timeout=LIMIT).status_code

    def by_device(self, name: str) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", timeout=LIMIT).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {sample.labels["device"]: sample.value for sample in samples if sample.name == name}

    @property
    def restarts(self) -> float:
        """Of all devices; -1 while one of them is down."""
        down = any(self.by_device("bei_device_down").values())
        return -1 if down else sum(self.by_device("bei_device_restarts_total").values())


@contextmanager
def started(config: dict[str, Any], log: Path, *flags: str) -> Iterator[Server]:
    """A server of the null engine that is ready."""
    file, port = log.with_suffix(".json"), free_port()
    file.write_text(json.dumps(config))
    command = [BEI, "serve", "--config", file, "--port", port, "--engine", "null", *flags]
    with log.open("w") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield Server(process, port, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["1", "2"], ids=["1 worker", "2 workers"])
def server(request, tiny_folder, tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log"
    with started(tiny_config(tiny_folder), log, "--devices", ",".join(NAMES), "--workers", request.param) as found:
        yield found


class Asking:
    """Clients that ask in threads; `answers` are the statuses so far."""

    def __init__(self, ask: Callable[[], int], clients: int, *, once: bool = False):
        self.answers: list[int] = []
        self._ask, self._once, self._ended = ask, once, False
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended:
            self.answers.append(self._ask())
            self._ended = self._ended or self._once

    def end(self) -> list[int]:
        self._ended = True
        for thread in self._threads:
            thread.join(LIMIT)
        return self.answers


def held_by_one(server: Server) -> list[Asking]:
    """The requests that a stopped engine holds, while the other has answered one."""
    os.kill(server.engine(NAMES[0]), signal.SIGSTOP)
    asking = [Asking(server.embed, 1, once=True)]
    while not (any(one.answers for one in asking) and any(not one.answers for one in asking)):
        asking.append(Asking(server.embed, 1, once=True))
        with suppress(AssertionError):  # it may be in one batch with another one, which is held
            wait_until(lambda: asking[-1].answers, seconds=1)
    assert [server.embed() for _ in range(10)] == [200] * 10  # those that were only slow are answered meanwhile
    return [one for one in asking if not one.answers]


def test_each_device_has_a_line(server):
    info = httpx.get(f"{server.url}/info").json()
    assert info["devices"] == NAMES
    assert info["device"] == f"{', '.join(NAMES)}: cpu"
    assert server.by_device("bei_device_down") == dict.fromkeys(NAMES, 0)
    assert server.by_device("bei_device_streams") == dict.fromkeys(NAMES, 1)


def test_a_death_costs_one_batch_and_the_other_device_serves(server):
    waiting = held_by_one(server)
    killed, restarts = server.engine(NAMES[0]), server.restarts
    os.kill(killed, signal.SIGKILL)
    statuses = []
    wait_until(lambda: statuses.extend([server.embed(), server.ready()]) or server.restarts == restarts + 1)
    assert [one.end() for one in waiting] == [[424]] * len(waiting)
    assert set(statuses) <= {200}
    assert server.engine(NAMES[0]) != killed
    lines = server.log.read_text().splitlines()
    assert any(re.search(rf"died by SIGKILL.* model=\S+ device={NAMES[0]}$", line) for line in lines)
    assert [server.embed() for _ in range(10)] == [200] * 10


def test_under_load_a_death_is_seen_by_its_batch_alone(server):
    load, ready = Asking(server.embed, CLIENTS), Asking(server.ready, 1)
    for name in NAMES:
        before = len(load.answers)
        wait_until(lambda at=before: len(load.answers) > at + 5 * CLIENTS)
        restarts = server.restarts
        os.kill(server.engine(name), signal.SIGKILL)
        wait_until(lambda before=restarts: server.restarts == before + 1)
    answers = load.end()
    assert set(answers) <= {200, 424}
    assert answers.count(424) <= len(NAMES) * CLIENTS  # a batch has at most one request of each client
    assert set(ready.end()) == {200}


def test_with_all_devices_gone_it_is_not_ready_until_one_is_back(server):
    ready, restarts = Asking(server.ready, 2), server.restarts
    wait_until(lambda: ready.answers)
    for pid in [server.engine(name) for name in NAMES]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: 503 in ready.answers)
    wait_until(lambda: ready.answers[-1] == 200)
    assert set(ready.end()) == {200, 503}
    assert server.embed() == 200
    wait_until(lambda: server.restarts == restarts + len(NAMES))


def test_a_drain_waits_for_every_device(tiny_folder, tmp_path):
    with started(tiny_config(tiny_folder), tmp_path / "log", "--devices", ",".join(NAMES)) as server:
        waiting, stopped = held_by_one(server), server.engine(NAMES[0])
        server.process.terminate()
        wait_until(lambda: "SIGTERM" in (tmp_path / "log").read_text())
        time.sleep(0.1)  # time for an answer that must not come
        assert not any(one.answers for one in waiting)
        os.kill(stopped, signal.SIGCONT)
        assert [one.end() for one in waiting] == [[200]] * len(waiting)
        assert server.process.wait(LIMIT) == 0
        assert not Path(f"/proc/{stopped}/exe").exists()


@pytest.mark.parametrize("flags", [(), ("--lazy",)], ids=["at once", "lazy"])
def test_devices_that_are_not_here_end_the_start_in_one_line(tiny_folder, tmp_path, flags):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tiny_folder)))
    command = [BEI, "serve", "--config", tmp_path / "config.json", "--port", "0", "--devices", "cpu:9999", *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2
    assert done.stderr.startswith("bei: devices cpu:9999: not among the processors of this process, which are cpu:")
    assert done.stderr.count("\n") == 1


def test_models_have_devices_of_their_own(tiny_folder, tmp_path):
    configs = []
    for name, device in zip(("first", "second"), NAMES, strict=True):
        config: dict[str, Any] = {**tiny_config(tiny_folder), "environment_variables": {"BEI_DEVICES": device}}
        config["trt_llm"]["runtime"] = {"served_model_name": name}
        configs.append(config)
    (tmp_path / "second.json").write_text(json.dumps(configs[1]))
    with started(configs[0], tmp_path / "log", "--config", str(tmp_path / "second.json")) as server:
        for name, device in zip(("first", "second"), NAMES, strict=True):
            assert httpx.get(f"{server.url}/info?model={name}").json()["devices"] == [device]
            reply = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a", "model": name})
            assert (reply.status_code, reply.json()["model"]) == (200, name)
        assert server.restarts == 0
