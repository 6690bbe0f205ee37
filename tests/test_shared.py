"""A thing that workers share is made once, is whole when it is seen, and is there until the last has left."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.shared import once, shared
from tests.support.waiting import LIMIT


def test_a_folder_is_written_once_for_all_who_ask(tmp_path):
    asked = []

    def write(folder: Path) -> None:
        asked.append(folder)
        (folder / "text").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: (once(tmp_path / "made", write) / "text").read_text(), range(8)))
    assert (texts, len(asked)) == (["whole"] * 8, 1)


def test_a_folder_that_was_not_finished_is_written_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists()
    folder = once(tmp_path / "made", lambda folder: (folder / "text").touch())
    assert [path.name for path in folder.iterdir()] == ["text"]


def test_whoever_starts_a_server_stops_it_when_no_other_uses_it(tmp_path):
    events = []

    @contextmanager
    def start() -> Iterator[str]:
        events.append("start")
        yield "url"
        events.append("stop")

    first, second = shared(tmp_path / "server", start), shared(tmp_path / "server", start)
    assert (first.__enter__(), second.__enter__()) == ("url", "url")
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(first.__exit__, None, None, None)
        with pytest.raises(TimeoutError):
            leaving.result(0.2)
        assert events == ["start"]
        second.__exit__(None, None, None)
        leaving.result(LIMIT)
    assert events == ["start", "stop"]
    with shared(tmp_path / "server", start):
        assert events == ["start", "stop", "start"]
