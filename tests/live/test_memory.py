"""Memory after large requests: a server returns to its former size, except for its engine's working memory."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import httpx
import pytest

from benchmarks.processes import Tree, served
from tests.support.live_servers import TASK_SERVERS
from tests.support.small_models import small_model
from tests.support.waiting import wait_until

LIMIT = 60.0  # seconds in which it has to shrink
LEFT = 100  # MB
AT_ONCE = 4  # each has a thread, whose heap keeps free blocks
TEXT = "My name is Maria. "
ATTACKS = {
    "ids": ("embedding", "/embed", {"inputs": [101] * 500_000}),
    "tokens": ("embedding", "/decode", {"ids": [5000 + i % 20_000 for i in range(500_000)]}),
    "characters": ("embedding", "/tokenize", {"inputs": TEXT * 100_000}),
    "tiny": ("embedding", "/embed", {"inputs": [str(i) for i in range(1024)]}),
    "sparse": ("splade", "/embed_sparse", {"inputs": [f"cat {i} dog" for i in range(512)]}),
    "windows": ("pii", "/predict_tokens", {"inputs": [[TEXT * 1000] for _ in range(250)]}),
    "pairs": ("reranker", "/rerank", {"query": "cat", "texts": [TEXT * 50 + str(i) for i in range(300)]}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Callable[[str], tuple[Tree, float]]]:
    """server(task): one for all attacks on it, and the memory that it had before the first."""
    with ExitStack() as stack:

        @cache
        def start(task: str) -> tuple[Tree, float]:
            if task != "embedding":
                small_model(task)
            log = tmp_path_factory.mktemp("server") / "log"
            tree = stack.enter_context(served(TASK_SERVERS[task][0], log=log))
            return tree, memory(tree)

        yield start


def memory(tree: Tree) -> float:
    """MB of all its processes, without the weights, which are pages of a file."""
    read = (Path(f"/proc/{pid}/status").read_text() for pid in tree.pids())
    return sum(int(re.search(r"RssAnon:\s+(\d+)", text)[1]) for text in read) / 1024


@pytest.mark.parametrize("name", ATTACKS)
def test_memory_comes_back_after_large_requests(server, name):
    task, path, body = ATTACKS[name]
    tree, before = server(task)

    def ask(_: int) -> int:
        return httpx.post(f"http://127.0.0.1:{tree.port}{path}", json=body, timeout=300).status_code

    with ThreadPoolExecutor(AT_ONCE) as threads:
        statuses = set(threads.map(ask, range(AT_ONCE)))
    assert statuses <= {200, 413, 429}, statuses
    wait_until(
        lambda: memory(tree) - before <= LEFT, LIMIT, lambda: f"{before:.0f} MB before, {memory(tree):.0f} after"
    )
