"""A server of ours as a tree of processes: started, watched through /proc, and killed by signals."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx

from benchmarks.http_load import ROOT, Running, read

READY = 120.0  # seconds
_ENGINE = "-m bei.engines."  # in the command line of an engine's process
_NO_WORKERS = (_ENGINE, "resource_tracker")
_LISTENS = re.compile(r"listening http://[^ ]*:([0-9]+)")
_PATH = (ROOT / "packages", ROOT)


@dataclass(frozen=True)
class Tree(Running):
    log: Path

    def descriptors(self) -> int:
        """Open files and sockets, summed over the tree."""
        return sum(_count(Path(f"/proc/{pid}/fd")) for pid in self.pids())

    def engine(self) -> int | None:
        """The process of the engine; None where it runs in the server's own."""
        return next((pid for pid in self.pids()[1:] if _ENGINE in _command(pid)), None)

    def workers(self) -> list[int]:
        """The children that answer HTTP."""
        commands = {pid: _command(pid) for pid in self.pids()[1:]}
        return [
            pid for pid, command in commands.items() if command and not any(name in command for name in _NO_WORKERS)
        ]

    def tracebacks(self) -> int:
        """The number of tracebacks in the log."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")


def gone(pid: int) -> bool:
    """Whether a process has ended, even if its parent has not noticed."""
    return not _command(pid)


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0


def _command(pid: int) -> str:
    return read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


@contextmanager
def served(config: str, *flags: str, log: Path, path: Sequence[Path] = ()) -> Iterator[Tree]:
    """A server that is ready. Its output goes to `log`; `path` are the first places where it and its children look for
    modules. SIGTERM ends it, or SIGKILL after half a minute."""
    server = start(config, *flags, log=log, path=path)
    try:
        yield server
    finally:
        stop(server)


def start(config: str, *flags: str, log: Path, path: Sequence[Path] = ()) -> Tree:
    """Starts a server on a free port, which it prints. Its working folder is not in `path`, because the processes of a
    server import nothing from the working folder."""
    started = time.perf_counter()
    log.parent.mkdir(exist_ok=True, parents=True)
    command = [sys.executable, "-m", "bei.cli", "serve", "--config", str(ROOT / config), "--port", "0", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(map(str, [*path, *_PATH]))}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=log.parent if path else ROOT
        )
    while not ((listens := _LISTENS.search(log.read_text())) and ready(int(listens[1]))):
        if process.poll() is not None or time.perf_counter() - started > READY:
            process.kill()
            raise click.ClickException(f"no server from {' '.join(command)}; see {log}")
        time.sleep(0.01)
    return Tree(process, int(listens[1]), time.perf_counter() - started, log)


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def stop(server: Tree) -> int:
    """The exit status; 0 is a good end."""
    if server.process.poll() is not None:
        return server.process.returncode
    children = server.pids()[1:]
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        for pid in children:
            if "bei" in _command(pid):
                os.kill(pid, signal.SIGKILL)
        return server.process.wait()
