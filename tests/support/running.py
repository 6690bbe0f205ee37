"""The process of slow_server.py."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support.waiting import LIMIT, wait_until

ROOT = Path(__file__).parents[2]
_UNCHECKED = httpx.create_ssl_context(verify=False)  # making one takes longer than a call


class Running:
    """`settings` are the server's; `patience` replaces its time limits, in seconds. `go_on` ends a load or a batch
    before its time."""

    def __init__(
        self, folder: Path, load_seconds: float = 0, batch_seconds: float = 0, patience: float = 0, **settings: object
    ):
        # A pipe would be full at some time. The server appends, wherever `log` has read up to.
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115  closed by the finalizer
        weakref.finalize(self, self._log.close)
        arguments = [folder, load_seconds, batch_seconds, patience, json.dumps(settings)]
        path = os.pathsep.join([str(ROOT / "packages"), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("slow_server.py")), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        with self.process.stdout as line:
            self.port = int(line.readline() or 0)
        assert self.port, self.log()
        self.url = f"http{'s' if 'tls_cert' in settings else ''}://127.0.0.1:{self.port}"

    def wait_for_health(self, status: int = 200) -> None:
        def found() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/health", verify=_UNCHECKED).status_code == status
            return False

        wait_until(found, LIMIT, lambda: f"no {status} from /health; {self.log()}")

    def wait_for_calls(self, count: int) -> None:
        """So many calls are in flight: their bodies are read, and they have no answer yet."""
        wait_until(lambda: self.metric("bei_requests_in_flight") == count, LIMIT, self.log)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", verify=_UNCHECKED).text
        return float(re.search(rf"^{name}\{{.*\}} (\S+)", text, re.MULTILINE)[1])

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log(), LIMIT, self.log)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def stop(self) -> tuple[int, str]:
        """The exit status after SIGTERM, and the log."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT), self.log()

    def log(self) -> str:
        """Everything that it has logged so far."""
        self._log.seek(0)
        return self._log.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def answering(folder: Path, **options: Any) -> Iterator[Running]:
    """A server that answers, and that ends on SIGTERM without an error."""
    running = Running(folder, **options)
    running.wait_for_health()
    yield running
    status, log = running.stop()
    assert status == 0, log
    assert "Traceback" not in log


def resident(running: Running) -> int:
    text = Path(f"/proc/{running.process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1])
