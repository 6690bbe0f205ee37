"""An engine runs no more threads than another process, the server, allows, with the same bits."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Batch
from bei.engines.interpreters import Interpreters
from bei.engines.replicas import Replicas
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.tiny_models import random_model, save
from tests.support.waiting import wait_until

LONG = Batch.pack([[i % 90 + 5 for i in range(2500)]])
FEW, MUCH = 0.005, 0.02  # seconds of CPU: of threads that look for work and find none, and of some that compute
TASK = 0.1  # seconds, more than one of a helper takes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    model = random_model("mpnet", max_position_embeddings=2502, hidden_size=192, intermediate_size=768)
    return read(save(tmp_path_factory.mktemp("long"), model), "m")


@pytest.fixture(scope="module")
def engine(checkpoint, native_cache) -> Iterator[Replicas]:
    asked = {"engine": "native", "precision": "fp32", "threads": 3, "cache_dir": native_cache}
    made = Replicas(Settings.load(tiny_config(), environ={}, **asked), Interpreters()).load(checkpoint)
    yield made
    made.close()


def cpu(engine: Replicas) -> dict[str, float]:
    """The seconds of CPU that each thread of its process has used."""
    (pid,) = engine.processes
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def helped(engine: Replicas, before: dict[str, float]) -> float:
    """The seconds of CPU of all threads but one since then."""
    spent = sorted(seconds - before[task] for task, seconds in cpu(engine).items())
    return sum(spent[:-1])


def test_as_many_threads_compute_as_are_allowed_with_the_same_bits(engine):
    engine.allow(3)
    expected = engine.run(LONG)  # the first batch starts threads of numpy, too
    for threads in (1, 2, 3, 8, 1):
        engine.allow(threads)
        before = cpu(engine)
        np.testing.assert_array_equal(engine.run(LONG), expected)
        assert helped(engine, before) < FEW if threads == 1 else helped(engine, before) > MUCH


def test_helpers_come_and_leave_while_a_batch_runs(engine):
    ended = Event()

    def run() -> None:
        while not ended.is_set():
            engine.run(LONG)

    engine.allow(3)
    thread = Thread(target=run)
    thread.start()
    try:
        for threads in (1, 3, 1):
            engine.allow(threads)
            time.sleep(TASK)  # a task that began before may end
            before = cpu(engine)
            wait_until(lambda before=before: sum(cpu(engine).values()) - sum(before.values()) > 2 * MUCH)
            assert (helped(engine, before) > FEW) == (threads > 1)
    finally:
        ended.set()
        thread.join()
