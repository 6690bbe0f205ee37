"""No file of the working folder of a command runs as code: it has a trap for every name that can be imported."""

import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from bei import processes
from tests.support.configs import tiny_config
from tests.support.servers import BEI, ROOT, free_port, wait_until_ready

PACKAGES = str(ROOT / "packages")
ROUTER = BEI.with_name("text-embeddings-router")
NAMES = {*sys.stdlib_module_names, *(found.name for found in pkgutil.iter_modules()), "sitecustomize", "usercustomize"}
TRAP = "open({mark!r}, 'a').write(__name__ + '\\n')\n"
PROGRAM = "#!/bin/sh\necho $0 >> {mark}\nexit 1\n"


class Place:
    """A folder with a model, its config.yaml, and traps; `sprung` are the traps that ran."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self._mark = shutil.copytree(model, folder / "model"), folder / "mark"
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(Path("."))))
        (self.folder / "in.jsonl").write_text(json.dumps({"text": "the cat"}) + "\n")
        for name in NAMES:
            (self.folder / f"{name}.py").write_text(TRAP.format(mark=str(self._mark)))
        for name in ("c++", "g++", "clang++", "as", "ld", "cc1plus", "collect2"):
            (self.folder / name).write_text(PROGRAM.format(mark=self._mark))
            (self.folder / name).chmod(0o755)

    @property
    def sprung(self) -> list[str]:
        return self._mark.read_text().splitlines() if self._mark.exists() else []

    @property
    def options(self) -> dict:
        more = {"PYTHONPATH": PACKAGES, "BEI_ENGINE": "null", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environment = {**kept, **more}
        return {"cwd": self.folder, "env": environment}

    def run(self, *command: object, **environment: str) -> str:
        options = self.options
        options["env"] |= environment
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, **options)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    @contextmanager
    def serving(self, *command: object) -> Iterator[None]:
        """While it answers."""
        port, log = free_port(), self.folder.parent / "log"
        with log.open("w") as output:
            words = [*map(str, command), "--port", str(port)]
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, **self.options)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            assert httpx.post(f"http://127.0.0.1:{port}/embed", json={"inputs": "a cat"}).status_code == 200
            yield
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0, log.read_text()


@pytest.fixture
def place(tmp_path, tiny_folder) -> Place:
    return Place(tmp_path, tiny_folder)


def test_a_trap_is_sprung_by_what_imports_it(place):
    """The traps work. (From a file: since Python 3.13 the interpreter imports linecache for a command of `-c`.)"""
    (place.folder / "of_the_folder.py").write_text("import numpy")
    place.run(sys.executable, "of_the_folder.py")
    assert "numpy" in place.sprung


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve(place, workers):
    with place.serving(BEI, "serve", "--workers", workers):
        pass
    assert place.sprung == []


def test_text_embeddings_router(place):
    with place.serving(ROUTER, "--model-id", ".", "--hostname", "127.0.0.1"):
        pass
    assert place.sprung == []


@pytest.mark.parametrize(
    "words",
    [
        ["info", "--engine", "torch"],
        ["build", "--engine", "torch"],
        ["embed", "in.jsonl", "out.npy"],
        ["embed", "in.jsonl", "out.npy", "--ray", "local", "--threads", "1"],
    ],
    ids=lambda words: " ".join(words[::3]),
)
def test_commands(place, words):
    place.run(BEI, *words)
    assert place.sprung == []


def test_the_compiler_is_no_file_of_the_folder(place):
    """An empty entry of PATH means the current folder."""
    path = f":{os.environ['PATH']}"
    place.run(BEI, "build", "--engine", "native", PATH=path, CXX="", BEI_CACHE_DIR="../cache")
    assert place.sprung == []


HOST = """
import sys
packages, config, root = sys.argv[1:]
sys.path[:0] = [packages, root]  # Truss has its bundle there for a while
import yaml
from model.model import Model
model = Model(config=yaml.safe_load(open(config)))
sys.path.remove(packages)
sys.path.append("")
model.load()
assert len(model.predict({"input": "the cat"})["data"]) == 1
"""


def test_the_truss_model(place):
    place.run(sys.executable, "-P", "-c", HOST, PACKAGES, place.folder / "config.yaml", ROOT, PYTHONPATH="")
    assert place.sprung == []


def test_what_a_child_imports_from(monkeypatch, tmp_path):
    """Folders by their absolute names, without the current one, however it is named, and without those that PYTHONPATH
    cannot express."""
    other, divided, link = tmp_path / "other", tmp_path / "a:b", tmp_path / "link"
    for folder in (other, divided, tmp_path / "here"):
        folder.mkdir()
    link.symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    odd = ["", ".", "relative", str(tmp_path / "here"), str(link), str(divided), str(tmp_path / "gone")]
    monkeypatch.setattr(sys, "path", [*odd, str(other)])
    assert processes.environment()["PYTHONPATH"].split(os.pathsep) == [str(processes.HOME), str(other)]


def test_interpreters_are_started_in_one_place():
    sources = {file: file.read_text() for file in processes.HOME.joinpath("bei").rglob("*.py")}
    starts = {file.name for file, source in sources.items() if "sys.executable" in source}
    assert starts == {"extras.py", "processes.py"}  # the first one only prints it
    assert not any("multiprocessing" in source or "os.system" in source for source in sources.values())
