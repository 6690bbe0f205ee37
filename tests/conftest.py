"""A tiny checkpoint on disk, and services on the null engine or on any other."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import httpx
import hypothesis
import pytest

from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Engine
from bei.engines.null import NullEngine
from bei.serving.service import Service
from bei.settings import Settings
from bei.tracing import Tracer
from tests.support.configs import tiny_config
from tests.support.live_servers import TASK_SERVERS
from tests.support.servers import ROOT, serving
from tests.support.shared import shared
from tests.support.small_models import small_model
from tests.support.waiting import LIMIT

StartService = Callable[..., Service]
LONG = ("arm", "bulk", "clients", "live", "server", "truss")
"""Folders of tests that start servers, clusters or emulators."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-seed", action="store_true", help="three random models of each kind in place of one")
    parser.addoption("--arm", action="store_true", help="every family on ARM64, in place of one at each level")


def pytest_configure(config: pytest.Config) -> None:
    """Every compilation, here or in a process that a test starts, goes through `tests/support/compiler.py`. Files of
    tests need not outlast a power failure: to sync one takes milliseconds, and engines write thousands of plans."""
    os.fsync = lambda file: None
    vars(httpx._config.DEFAULT_TIMEOUT_CONFIG).update(connect=LIMIT, read=LIMIT, write=LIMIT)  # 5 s are few under load
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or "TESTS_CXX" in os.environ:
        return
    objects = ROOT / ".pytest_cache" / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TESTS_CXX": compiler, "TESTS_OBJECTS": str(objects), "CXX": str(ROOT / "tests/support/compiler.py")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests are in front, so that no worker is alone with one of them at the end. The workers that take the
    rest compute while these wait."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory) -> Path:
    """A folder that all workers of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    from tests.support.tiny_models import random_model, save  # torch takes seconds, and most units need none

    return save(tmp_path_factory.mktemp("tiny"), random_model("bert"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_folder) -> Checkpoint:
    return read(tiny_folder, "tiny")


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory) -> Path:
    """The folder in which the native engine's library is compiled once."""
    return tmp_path_factory.mktemp("native")


@pytest.fixture
def start_service(tiny_checkpoint) -> Iterator[StartService]:
    """start_service(engine=None, **settings): a ready service, closed after the test."""
    started = []

    def start(
        engine: Engine | None = None,
        checkpoint: Checkpoint = tiny_checkpoint,
        tracer: Tracer | None = None,
        **flags,
    ) -> Service:
        service = Service(Settings.load(tiny_config(), environ={}, **flags), tracer=tracer)
        service.start(checkpoint, engine or NullEngine(checkpoint))
        started.append(service)
        return service

    yield start
    for service in started:
        service.close()


@pytest.fixture(scope="session")
def task_urls(of_all_workers) -> Iterator[dict[str, str]]:
    """A live server of each task on real weights, in fp32; all workers ask the same ones."""
    for name in ("reranker", "classifier", "pii", "splade"):
        small_model(name)

    def start(name: str) -> AbstractContextManager[str]:
        config, flags = TASK_SERVERS[name]
        log = of_all_workers / f"server-{name}.log"
        return serving("--precision", "fp32", *flags, config=ROOT / config, log=log)

    with ExitStack() as stack:
        yield {
            name: stack.enter_context(shared(of_all_workers / f"server-{name}", partial(start, name)))
            for name in TASK_SERVERS
        }
