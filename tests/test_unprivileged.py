"""A user who may write only into the cache, as in a container with a read-only root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.configs import tiny_config
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


def start(place: Path, cache: str, *words: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "bei.cli", *words, "--config", str(place / "config.yaml")]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "TMPDIR": str(place / "closed"),  # the compiler's, too
        "BEI_CACHE_DIR": str(place / cache),
    }
    return subprocess.Popen([*_as_nobody(), *command], env=environment, cwd="/", text=True, **options)


def _as_nobody() -> list[str]:
    """The command prefix with which root becomes nobody, who may read an interpreter that only root may."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if not all(parent.stat().st_mode & 1 for parent in Path(sys.executable).resolve().parents):
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [*words, "--"]


def test_a_server_writes_into_its_cache_and_nowhere_else(place):
    port, log = free_port(), place / "log"
    with log.open("w") as output:
        process = start(
            *(place, "cache", "serve", "--engine", "native", "--port", str(port)), stdout=output, stderr=output
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log, timeout=120)
        assert httpx.post(f"http://127.0.0.1:{port}/embed", json={"inputs": "the cat"}).status_code == 200
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()
    assert {file.suffix for file in (place / "cache" / "native").iterdir()} >= {".so", ".plan"}


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
