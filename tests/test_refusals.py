"""A refused start: the last line gives the reason, the status is 2, and no process prints a traceback."""

import os
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bei import cli
from bei.checkpoint import sources
from bei.engines import choice
from bei.engines.interpreters import Interpreters
from bei.engines.replicas import Replicas
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.servers import BEI, ROOT
from tests.support.tiny_models import random_model, save

LIMIT = 120.0
KILLED = "import os, sys\nif 'bei.{module}' in sys.orig_argv: os.kill(os.getpid(), 9)\n"


class Start:
    """A `bei serve` that will be refused."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        self.config, self.flags = tiny_config(model), ["--engine", "null", "--port", "0"]
        self.environment, self.paths = {"BEI_CACHE_DIR": str(folder / "cache")}, [str(ROOT / "packages")]
        self.most_bytes_a_file: int | None = None

    def run(self, *flags: str) -> tuple[int, list[str]]:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        command = [BEI, "serve", "--config", self.folder / "config.yaml", *self.flags, *flags]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self.paths), **self.environment}
        limits = None if self.most_bytes_a_file is None else self._limit
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, preexec_fn=limits
        )
        return done.returncode, done.stderr.splitlines()

    def _limit(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most_bytes_a_file, self.most_bytes_a_file))

    def kill(self, module: str) -> None:
        """Every process of that module ends as it starts."""
        (self.folder / "site").mkdir()
        (self.folder / "site" / "sitecustomize.py").write_text(KILLED.format(module=module))
        self.paths.insert(0, str(self.folder / "site"))


def no_model(start: Start) -> str:
    start.config = tiny_config(start.folder / "nothing")
    return "nothing is not a folder"


def no_weights(start: Start) -> str:
    (start.folder / "empty").mkdir()
    (start.folder / "empty" / "config.json").write_text("{}")
    start.config = tiny_config(start.folder / "empty")
    return "no *.safetensors"


def no_such_setting(start: Start) -> str:
    start.environment["BEI_TYPO"] = "1"
    return "BEI_TYPO is not a setting"


def another_precision(start: Start) -> str:
    start.flags += ["--engine", "native", "--precision", "fp16"]
    return "fp16 needs a GPU"


def no_compiler(start: Start) -> str:
    start.flags += ["--engine", "native"]
    start.environment |= {"CXX": "no-such-compiler"}
    return "no C++ compiler (CXX=no-such-compiler)"


def a_compiler_that_fails(start: Start) -> str:
    start.flags += ["--engine", "native"]
    start.environment |= {"CXX": "false"}
    return "cannot compile the native engine: exit status 1"


def no_engine_lives(start: Start) -> str:
    start.kill("engines.child")
    return "the engine's process ended by SIGKILL while it loaded"


REFUSED = [
    no_model,
    no_weights,
    no_such_setting,
    another_precision,
    no_compiler,
    a_compiler_that_fails,
    no_engine_lives,
]


@pytest.fixture
def start(tmp_path, tiny_folder) -> Start:
    return Start(tmp_path, tiny_folder)


def check(status: int, lines: list[str], message: str) -> None:
    assert (status, [line for line in lines if "Traceback" in line]) == (2, []), "\n".join(lines)
    told = [line for line in lines if " INFO " not in line]  # a stopped worker logs that it drains
    assert message in told[-1], "\n".join(lines)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.__name__)
def test_a_start_that_is_refused(start, refused, workers):
    message = refused(start)
    check(*start.run("--workers", workers), message)


def test_a_port_that_is_taken(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check(*start.run("--port", str(taken.getsockname()[1])), "Address already in use; choose another with")


def test_a_disk_without_room_for_the_plan(start, native_cache, tmp_path):
    """The reason of the system, which is not None."""
    small = save(tmp_path / "small", random_model("bert", 1))
    built = subprocess.run(
        [BEI, "build", "--config", write(tmp_path / "first.yaml", small), "--engine", "native"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "packages"), "BEI_CACHE_DIR": str(native_cache)},
        capture_output=True,
    )
    assert built.returncode == 0, built.stderr
    start.config = tiny_config(save(tmp_path / "other", random_model("bert", 2)))
    start.flags += ["--engine", "native"]
    start.environment["BEI_CACHE_DIR"], start.most_bytes_a_file = str(native_cache), 20_000
    check(*start.run(), ": File too large; set BEI_CACHE_DIR to a folder with room")


def write(file: Path, model: Path) -> Path:
    file.write_text(yaml.safe_dump(tiny_config(model)))
    return file


def test_workers_that_die_at_once_end_the_start(start):
    start.kill("server.workers")
    status, lines = start.run("--workers", "2", "--max-engine-restarts", "2")
    assert status == 2
    assert any("died 3 times in a row, at last by SIGKILL: the server ends" in line for line in lines), lines
    assert not any("Traceback" in line for line in lines)


def raising(error: Exception) -> Callable:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("command", ["info", "build"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device"),
    ],
    ids=["memory", "disk"],
)
@pytest.mark.parametrize(("owner", "name"), [(choice, "create"), (sources, "load")], ids=["engine", "checkpoint"])
def test_what_the_machine_lacks(tmp_path, tiny_folder, monkeypatch, command, owner, name, error, message):
    monkeypatch.setattr(owner, name, raising(error))
    config = write(tmp_path / "config.yaml", tiny_folder)
    result = CliRunner().invoke(cli.main, [command, "--config", str(config), "--engine", "null"])
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith(f"bei: {message}")
    assert "Traceback" not in result.output


def test_an_engine_that_is_never_asked_for_ends_in_silence(tiny_folder, capfd):
    """As it does where the checkpoint is refused first."""
    Replicas(Settings.load(tiny_config(tiny_folder), environ={}), Interpreters()).abandon()
    assert capfd.readouterr().err == ""
