"""Engines behind one queue, each in a process on a device of its own."""

import os
import re
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from bei.engines import choice
from bei.engines.base import Batch, EngineFacts
from bei.engines.devices import ANY, Device, Machine
from bei.engines.interpreters import Interpreters
from bei.engines.replicas import Replicas, _of_all
from bei.errors import EngineDied, EngineFailed, SetupError
from bei.metrics import Metrics
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.exposition import values_of
from tests.support.machines import machine
from tests.support.stopped_processes import is_unread, stop
from tests.support.waiting import LIMIT, wait_until

BATCH = Batch.pack([[5, 6, 7], [8], list(range(5, 30))])
CPU = min(os.sched_getaffinity(0))
TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")


class Group:
    """Replicas that have loaded."""

    def __init__(self, settings: Settings, checkpoint, where: Machine | None):
        self.metrics = Metrics()
        self.engine = Replicas(settings, Interpreters(), self.metrics.of_model("m"), where)
        self.faults: list[str | None] = []
        self.engine.on_fault = lambda: self.faults.append(self.engine.fault)
        self.engine.load(checkpoint)

    @property
    def pids(self) -> tuple[int, ...]:
        return self.engine.processes

    def count(self, name: str) -> dict[str, float]:
        """A metric by device."""
        return values_of(self.metrics, name, "device")

    def in_thread(self) -> tuple[threading.Thread, list]:
        """A batch in a thread, and its result."""
        became: list = []

        def run() -> None:
            try:
                became.append(self.engine.run(BATCH))
            except EngineFailed as exc:
                became.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, became

    def waits(self, place: int) -> bool:
        """Whether a batch runs in a process."""
        return not self.engine._processes[place].child.free


@pytest.fixture
def group(tiny_folder, tiny_checkpoint):
    """group(where=None, **settings): replicas of the null engine, closed after the test."""
    made = []

    def make(where: Machine | None = None, **more) -> Group:
        settings = Settings.load(tiny_config(tiny_folder), environ={}, **({"engine": "null"} | more))
        made.append(Group(settings, tiny_checkpoint, where))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


@pytest.fixture
def gpus(tmp_path) -> Machine:
    """Two that do not exist: the null engine needs none."""
    return machine(tmp_path, gpus=2, allowed=[CPU])


def test_facts_are_those_of_one_with_the_streams_of_all(group, gpus):
    one, two = group().engine.facts, group(gpus, devices="cuda").engine.facts
    assert (one.streams, two.streams) == (1, 2)
    assert (one.devices, two.devices) == ("", "cuda:0,cuda:1")
    assert two.device == "cuda:0, cuda:1: cpu"
    assert (two.name, two.token_budget, two.precision) == (one.name, one.token_budget, one.precision)


def test_each_process_has_its_gpu_before_anything_is_imported(group, gpus):
    for number, pid in enumerate(group(gpus, devices="cuda").pids):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=%d" % number in variables
        assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in variables


@TWO
def test_every_thread_of_a_process_stays_on_its_processors(group, native_cache):
    """Those of numpy's import, too; and this process stays where it is."""
    ours = os.sched_getaffinity(0)
    pair = sorted(ours)[:2]
    named = ",".join(f"cpu:{number}" for number in pair)
    found = group(devices=named, engine="native", precision="fp32", cache_dir=native_cache)
    assert os.sched_getaffinity(0) == ours
    for number, pid in zip(pair, found.pids, strict=True):
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        assert [os.sched_getaffinity(thread) for thread in threads] == [{number}] * len(threads)
    facts = found.engine.facts
    assert (facts.streams, facts.processors, facts.has_brief_slot, facts.devices) == (2, 1, True, named)


def test_each_device_has_its_part_of_the_threads(group, gpus):
    two = group(gpus, devices="cuda").engine

    def allowed(threads: int) -> list[int]:
        two.allow(threads)
        return [process.child.allowance._number.value for process in two._processes]

    assert [allowed(threads) for threads in (8, 5, 1)] == [[4, 4], [2, 2], [1, 1]]


def resident(pid: int, name: str) -> tuple[int, int]:
    """The kilobytes of a file that a process has mapped: its own and with others, and its proportional part of them."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    part = re.search(rf"^[^\n]*{name}\n(?:[A-Za-z].*\n)*", text, re.MULTILINE)[0]
    return tuple(int(re.search(rf"^{field}:\s+(\d+)", part, re.MULTILINE)[1]) for field in ("Rss", "Pss"))


@TWO
def test_replicas_map_one_plan_and_give_the_rows_of_one(group, tiny_checkpoint, native_cache):
    asked = {"engine": "native", "precision": "fp32", "cache_dir": native_cache}
    pair = sorted(os.sched_getaffinity(0))[:2]
    found = group(devices=",".join(f"cpu:{number}" for number in pair), **asked)
    alone = choice.create(Settings.load(tiny_config(), environ={}, threads=1, **asked), tiny_checkpoint)
    stop(found.pids[0])
    threads = [found.in_thread() for _ in range(2)]  # a stream, then the brief one
    wait_until(lambda: found.waits(0) and not found.engine._processes[0].child.free_brief)
    np.testing.assert_array_equal(found.engine.run(BATCH), alone.run(BATCH))  # the other's
    os.kill(found.pids[0], signal.SIGCONT)
    for thread, became in threads:
        thread.join(LIMIT)
        np.testing.assert_array_equal(became[0], alone.run(BATCH))
    for pid in found.pids:
        whole, shared = resident(pid, r"\.plan")
        assert 0 < shared <= whole / 2  # this test maps it, too


def test_a_batch_goes_to_the_device_that_is_free(group, gpus):
    found = group(gpus, devices="cuda")
    stop(found.pids[0])
    thread, became = found.in_thread()
    wait_until(lambda: found.waits(0))
    for _ in range(5):
        assert found.engine.run(BATCH).shape == (3, 48)
    assert found.count("bei_device_batches_total") == {"cuda:0": 0, "cuda:1": 5}
    os.kill(found.pids[0], signal.SIGCONT)
    thread.join(LIMIT)
    assert became[0].shape == (3, 48)
    assert found.count("bei_device_batches_total") == {"cuda:0": 1, "cuda:1": 5}
    assert found.count("bei_device_seconds_total")["cuda:0"] > 0
    assert found.count("bei_device_streams") == {"cuda:0": 1, "cuda:1": 1}


def test_a_death_costs_what_it_ran_and_the_other_goes_on(group, gpus):
    found = group(gpus, devices="cuda")
    killed, other = found.pids
    (channel,) = found.engine._processes[0].child.free
    stop(killed)
    thread, became = found.in_thread()
    wait_until(lambda: is_unread(channel))
    os.kill(killed, signal.SIGKILL)
    thread.join(LIMIT)
    assert isinstance(became[0], EngineDied)
    while found.count("bei_device_restarts_total")["cuda:0"] == 0 or found.pids[0] == killed:
        assert found.engine.run(BATCH).shape == (3, 48)
    assert found.faults == []
    wait_until(lambda: found.count("bei_device_down")["cuda:0"] == 0)
    assert found.pids[1] == other
    assert found.count("bei_device_restarts_total") == {"cuda:0": 1, "cuda:1": 0}
    assert values_of(found.metrics, "bei_engine_restarts_total", "model") == {"m": 1}


def test_it_is_down_only_while_all_are(group, gpus):
    found = group(gpus, devices="cuda")
    for pid in found.pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: found.faults)
    assert found.engine.run(BATCH).shape == (3, 48)  # waits for the first that is back
    wait_until(lambda: found.faults == ["the engine is restarting", None])
    wait_until(lambda: set(found.count("bei_device_down").values()) == {0})


def test_a_device_that_stays_down_leaves_the_others_to_serve(group, gpus):
    found = group(gpus, devices="cuda", max_engine_restarts=0)
    os.kill(found.pids[0], signal.SIGABRT)
    wait_until(lambda: found.count("bei_device_down")["cuda:0"] == 1)
    wait_until(lambda: found.engine._processes[0].is_down)
    assert found.engine.run(BATCH).shape == (3, 48)
    assert found.engine.fault is None
    os.kill(found.pids[1], signal.SIGABRT)
    wait_until(lambda: found.engine.fault)
    assert "died 1 times in a row, at last by SIGABRT" in found.engine.fault
    with pytest.raises(EngineFailed, match="in a row"):
        found.engine.run(BATCH)
    assert found.count("bei_device_down") == {"cuda:0": 1, "cuda:1": 1}
    found.engine.close()
    assert found.count("bei_device_down") == {"cuda:0": 0, "cuda:1": 0}  # a model that is unloaded alarms nobody


KILLED_AT_ONCE = "import os\nif os.path.exists({flag!r}): os.remove({flag!r}); os.kill(os.getpid(), 9)\n"


def test_a_death_while_it_loads_is_one_of_the_row(group, tmp_path, monkeypatch):
    """As where memory is short for a moment."""
    found = group()
    (tmp_path / "sitecustomize.py").write_text(KILLED_AT_ONCE.format(flag=str(tmp_path / "once")))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "once").touch()
    os.kill(found.pids[0], signal.SIGKILL)
    wait_until(lambda: found.faults)
    assert found.engine.run(BATCH).shape == (3, 48)
    assert not (tmp_path / "once").exists()
    assert found.count("bei_device_restarts_total") == {"any": 2}


@TWO
@pytest.mark.parametrize("damage", [b"", b"BEIPLAN1 and nothing more"])
def test_a_bad_plan_is_made_again_and_costs_the_others_nothing(group, native_cache, tmp_path, damage):
    """By the successor of one process; the others keep what they have mapped."""
    cache = shutil.copytree(native_cache, tmp_path / "cache")
    pair = sorted(os.sched_getaffinity(0))[:2]
    named = ",".join(f"cpu:{number}" for number in pair)
    found = group(devices=named, engine="native", precision="fp32", cache_dir=cache)
    expected = found.engine.run(BATCH)
    plans = list(cache.rglob("*.plan"))
    for plan in plans:
        (tmp_path / "bad").write_bytes(damage)
        os.replace(tmp_path / "bad", plan)
    killed = found.pids[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: found.pids[0] != killed and set(found.count("bei_device_down").values()) == {0})
    stop(found.pids[1])
    np.testing.assert_array_equal(found.engine.run(BATCH), expected)
    os.kill(found.pids[1], signal.SIGCONT)
    assert found.faults == []
    wait_until(lambda: any(plan.stat().st_size > 1000 for plan in plans))  # it is written behind the first answers


def test_what_one_refuses_is_said_with_its_device(group, gpus):
    with pytest.raises(SetupError, match=r"^cuda:0: .*fp16 needs a GPU"):
        group(gpus, devices="cuda", engine="torch", precision="fp16")


def facts(**more) -> EngineFacts:
    known = {"name": "torch", "device": "H100", "precision": "bf16", "reason": "", "streams": 2, "token_budget": 100}
    return EngineFacts(**(known | more))


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"precision": "fp16"}, "cuda:1 and cuda:0 differ in precision: fp16 and bf16"),
        ({"token_budget": 50}, "cuda:1 and cuda:0 differ in token_budget: 50 and 100"),
        ({"name": "tensorrt"}, "differ in name"),
    ],
)
def test_devices_that_would_not_give_the_same_are_refused(more, refusal):
    with pytest.raises(SetupError, match=refusal):
        _of_all([Device("cuda:0"), Device("cuda:1")], [facts(), facts(**more)])


def test_a_gpu_that_its_engine_does_not_find_is_no_processor():
    with pytest.raises(SetupError, match="devices cuda:0: engine torch runs on cpu x 8 in its place"):
        _of_all([Device("cuda:0")], [facts(device="cpu x 8", processors=8)])


def test_devices_may_have_different_sizes():
    two = _of_all([Device("cpu:0-3"), Device("cpu:4-5")], [facts(streams=4, device="a"), facts(streams=2, device="b")])
    assert (two.streams, two.devices, two.device) == (6, "cpu:0-3,cpu:4-5", "cpu:0-3, cpu:4-5: a; b")
    assert _of_all([ANY], [facts()]) == facts()
