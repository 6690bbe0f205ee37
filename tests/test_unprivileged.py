"""A user who may write only into the cache, as in a container with a read-only root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.configs import tiny_config
from tests.support.engine_processes import children
from tests.support.servers import ROOT, free_port, wait_until_ready

NOBODY = 65534


@pytest.fixture
def place(tiny_folder) -> Iterator[Path]:
    """A folder that anybody may read, with a model and a config.yaml, a cache of the user nobody, and one of root."""
    place = Path(tempfile.mkdtemp(prefix="bei-unprivileged-"))
    shutil.copytree(tiny_folder, place / "model")
    (place / "config.yaml").write_text(yaml.safe_dump(tiny_config(place / "model")))
    for name in ("cache", "closed"):
        (place / name).mkdir()
    subprocess.run(["chmod", "-R", "a+rX", place], check=True)
    if os.geteuid() == 0:
        os.chown(place / "cache", NOBODY, NOBODY)
    (place / "closed").chmod(0o555)
    yield place
    shutil.rmtree(place)


def start(place: Path, cache: str, *words: str, niceness: int = 0, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "bei.cli", *words, "--config", str(place / "config.yaml")]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "TMPDIR": str(place / "closed"),  # the compiler's, too
        "BEI_CACHE_DIR": str(place / cache),
    }
    nicer = ["nice", "-n", str(niceness)] if niceness else []
    return subprocess.Popen([*nicer, *_as_nobody(), *command], env=environment, cwd="/", text=True, **options)


def _as_nobody() -> list[str]:
    """The command prefix with which root becomes nobody, who may read an interpreter that only root may."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if not all(parent.stat().st_mode & 1 for parent in Path(sys.executable).resolve().parents):
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [*words, "--"]


@contextmanager
def serving(place: Path, niceness: int = 0) -> Iterator[tuple[str, subprocess.Popen]]:
    """The URL of a server that is ready, and its process. SIGTERM stops it, and it must exit with 0."""
    port, log = free_port(), place / "log"
    words = ("serve", "--engine", "native", "--port", str(port))
    with log.open("w") as output:
        process = start(place, "cache", *words, niceness=niceness, stdout=output, stderr=output)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log, timeout=120)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()


def test_a_server_writes_into_its_cache_and_nowhere_else(place):
    with serving(place) as (url, _):
        assert httpx.post(f"{url}/embed", json={"inputs": "the cat"}).status_code == 200
    assert {file.suffix for file in (place / "cache" / "native").iterdir()} >= {".so", ".plan"}


def test_a_nice_server_answers_long_texts_too(place):
    """Its threads for long batches are nicer than it is; to be less nice than before takes a privilege."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with serving(place, niceness=7) as (url, process):
        assert httpx.post(f"{url}/embed", json={"inputs": ["the cat sat on the mat"] * 32}).status_code == 200
        (engine,) = children(process.pid)
        threads = [int(task.name) for task in Path(f"/proc/{engine}/task").iterdir()]
        found = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert found == {min(own + 7, 19), min(own + 12, 19)}


def test_a_cache_that_may_not_be_written_to_is_named_in_one_line(place):
    process = start(place, "closed", "serve", "--engine", "native", "--port", "0", stderr=subprocess.PIPE)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    wanted = f"{place / 'closed' / 'native'}: Permission denied; set BEI_CACHE_DIR to a folder with room"
    assert wanted in log.splitlines()[-1]
    assert "Traceback" not in log


def test_so_is_the_hub_s(place):
    model = {"source": "HF", "repo": "org/tiny"}
    build = {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": model}}}
    (place / "config.yaml").write_text(yaml.safe_dump(build))
    process = start(place, "cache", "build", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert log.splitlines()[-1].startswith("bei: ")
    assert "Traceback" not in log
