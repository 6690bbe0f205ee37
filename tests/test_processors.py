"""Models in one server do not run more threads than it has processors."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bei import api
from bei.api import Call
from bei.engines.interpreters import Interpreters
from bei.serving.registry import Registry
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.tiny_models import random_model, save

MODELS = ("a", "b")
SECONDS = 2.0
TEXT = "the cat sat on the mat " * 300


@pytest.fixture(scope="module")
def registry(tmp_path_factory, native_cache) -> Iterator[Registry]:
    """Two models of long texts, each in a process of its own, on two processors."""
    model = random_model("mpnet", max_position_embeddings=2502, hidden_size=192, intermediate_size=768)
    folder = save(tmp_path_factory.mktemp("long"), model)
    asked = {"engine": "native", "precision": "fp32", "threads": 2, "cache_dir": native_cache, "max_num_tokens": 4096}
    settings = [Settings.load(tiny_config(folder), environ={}, served_model_name=name, **asked) for name in MODELS]
    made = Registry.of(settings, interpreters=Interpreters())
    made.load()
    yield made
    made.close()


def computing(pids: list[int]) -> int:
    """The threads of these processes that run, or would if there were more processors."""
    found = 0
    for pid in pids:
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            found += stat.read_text().rpartition(")")[2].split()[0] == "R"
    return found


def seen(registry: Registry, *models: str) -> Counter[int]:
    """How often each number of threads computed, while each of these models always had a text."""
    pids = [pid for service in registry.services for pid in service._isolated.processes]
    until = time.monotonic() + SECONDS
    found: Counter[int] = Counter()

    async def ask(name: str) -> None:
        while time.monotonic() < until:
            call = Call("POST", "/v1/embeddings", json.dumps({"input": TEXT, "model": name}).encode())
            assert (await api.answer(registry, call)).status == 200

    async def look() -> None:
        while time.monotonic() < until:
            found[await asyncio.to_thread(computing, pids)] += 1
            await asyncio.sleep(0.002)  # between two looks

    async def all_of_them() -> None:
        await asyncio.gather(look(), *map(ask, models))

    asyncio.run(all_of_them())
    return found


@pytest.mark.parametrize("models", [("a",), ("a", "b")], ids="+".join)
def test_busy_models_run_a_thread_on_each_processor(registry, models):
    """More of them only until a helper has ended its task."""
    found = seen(registry, *models)
    assert found[2] > found.total() / 2, found
    assert sum(times for threads, times in found.items() if threads > 2) < found.total() / 20, found
