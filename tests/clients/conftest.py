"""The live server of five models that clients drive, and the environment of the clients."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.support.live_servers import TASK_SERVERS
from tests.support.servers import ROOT, serving
from tests.support.shared import shared
from tests.support.small_models import small_model

BESIDE = ("reranker", "classifier", "pii", "splade")


@pytest.fixture(scope="session")
def clients() -> Path:
    """The environment of the clients, with node and its modules."""
    python = Path(os.environ.get("CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
    assert python.exists(), f"{python} is missing; run: make .venv-clients/ok"
    return python.parents[1]


def one_server(folder: Path) -> AbstractContextManager[str]:
    configs = [flag for name in BESIDE for flag in ("--config", str(ROOT / TASK_SERVERS[name][0]))]
    # llama_index_baseten sends the id of a deployment; @ai-sdk/baseten wants /sync in the address
    aliases = [f"--alias={name}=sentence-transformers/all-MiniLM-L6-v2" for name in ("abc", "sync")]
    batches = f"--batch-dir={folder / 'batches'}"
    return serving("--precision", "fp32", *configs, *aliases, batches, log=folder / "server-of-all.log")


@pytest.fixture(scope="session")
def server_of_all(of_all_workers) -> Iterator[str]:
    """The address of one server of all-MiniLM-L6-v2 and the small models of four other tasks."""
    for name in BESIDE:
        small_model(name)
    with shared(of_all_workers / "server-of-all", partial(one_server, of_all_workers)) as url:
        yield url
