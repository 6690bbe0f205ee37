"""A server process under load: its processes, its clients, and its cost."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import numpy as np
import uvloop

from bei.bench.connection import Place

ROOT = Path(__file__).parents[1]
LIMIT = 20.0  # seconds after which a silent server counts as hung
BODY = b'{"input": "What is Deep Learning?"}'
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Load:
    """Requests per second, latencies in ms, and CPU seconds per 1,000 requests of the server and of its main thread."""

    rate: float
    p50: float
    p99: float
    cpu: float
    main_cpu: float


@dataclass(frozen=True)
class Running:
    """A server and its children. A process that has just ended counts nothing."""

    process: subprocess.Popen
    port: int
    start: float  # seconds from fork to the first accepted connection

    def connect(self, timeout: float = LIMIT) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def pids(self) -> list[int]:
        """The server's own process first."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, read(children).split())
        return found

    def cpu(self, thread: str = "*") -> float:
        """Seconds of all threads, or of one thread of the server."""
        return cpu_seconds(self.pids(), thread)

    def main_cpu(self) -> float:
        """Seconds of the main thread, which has the event loop."""
        return self.cpu(str(self.process.pid))

    def resident(self) -> float:
        """MB, the sum over all processes; shared memory counts in each."""
        statm = (read(Path(f"/proc/{pid}/statm")).split() for pid in self.pids())
        return sum(int(fields[1]) for fields in statm if fields) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pids: Iterable[int], thread: str = "*") -> float:
    """To the nanosecond; /proc/PID/stat counts in hundredths of a second."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob(f"{thread}/schedstat")]
    return sum(int(times.split()[0]) for times in map(read, files) if times) / 1e9


def read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(app: str, server: str) -> Iterator[Running]:
    port = free_port()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", app + server.format(port=port)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "packages")},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Running(process, port, wait_for(port, started))
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, started: float) -> float:
    while time.perf_counter() - started < LIMIT:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return time.perf_counter() - started
        except OSError:
            time.sleep(0.005)
    raise click.ClickException(f"nothing listens after {LIMIT} s; run with stderr to see why")


def http1(server: Running, connections: int, requests: int) -> Load:
    """By the client of `bei bench`: each connection asks again when it has its answer."""
    place = Place("127.0.0.1", server.port)
    request = place.request("/v1/embeddings", BODY)

    async def everyone(count: int) -> list[float]:
        took: list[float] = []

        async def client() -> None:
            connection = await place.connect()
            for _ in range(count):
                sent = time.perf_counter()
                await connection.ask(request)
                took.append(time.perf_counter() - sent)
            connection.close()

        await asyncio.gather(*(client() for _ in range(connections)))
        return took

    uvloop.run(everyone(10))
    return measured(server, lambda: uvloop.run(everyone(requests // connections)))


def http2(server: Running, requests: int) -> Load:
    """8 streams at a time on one connection. The client (httpx) is the slow part, so only `cpu` is meaningful."""

    async def everyone() -> list[float]:
        took: list[float] = []
        url = f"http://127.0.0.1:{server.port}/v1/embeddings"

        async def stream(client: httpx.AsyncClient) -> None:
            for _ in range(requests // 8):
                sent = time.perf_counter()
                (await client.post(url, content=BODY)).raise_for_status()
                took.append(time.perf_counter() - sent)

        async with httpx.AsyncClient(http1=False, http2=True, timeout=LIMIT) as client:
            await client.post(url, content=BODY)
            await asyncio.gather(*(stream(client) for _ in range(8)))
        return took

    return measured(server, lambda: uvloop.run(everyone()))


def measured(server: Running, ask: Callable[[], list[float]]) -> Load:
    cpu, main_cpu, started = server.cpu(), server.main_cpu(), time.perf_counter()
    took = ask()
    seconds, cpu, main_cpu = time.perf_counter() - started, server.cpu() - cpu, server.main_cpu() - main_cpu
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return Load(len(took) / seconds, p50, p99, 1000 * cpu / len(took), 1000 * main_cpu / len(took))


def speaks_h2c(server: Running) -> bool:
    try:
        with httpx.Client(http1=False, http2=True, timeout=5) as client:
            return client.post(f"http://127.0.0.1:{server.port}/", content=b"{}").http_version == "HTTP/2"
    except httpx.HTTPError:
        return False
