"""Which HTTP server costs least: the same small ASGI app under each, interleaved.

The app reads the body and answers 8 kB of JSON, as one embedding of 384 numbers is. The client is a raw socket per
connection with keep-alive, in this process; the server is another process, whose CPU seconds are read from /proc.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

BODY = json.dumps({"input": "What is Deep Learning?"}).encode()
ANSWER = json.dumps({"data": [{"embedding": [0.123456789] * 640}]}).encode()

UVICORN = """
import uvicorn
uvicorn.run(app, host="127.0.0.1", port={port}, log_level="warning", access_log=False, loop="{loop}", http="{http}")
"""
HYPERCORN = """
import asyncio, uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
config = Config()
config.bind, config.keep_alive_max_requests = ["127.0.0.1:{port}"], 10**9
uvloop.run(serve(app, config))
"""
GRANIAN = """
import asyncio, uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
async def main():
    options = dict(interface=Interfaces.ASGI, http=HTTPModes.auto, log_enabled=False)
    await Server(app, address="127.0.0.1", port={port}, **options).serve()
uvloop.run(main())
"""
OURS = """
from bei.server import listen
listen.serve(app, listen.bind("127.0.0.1", {port}), drain_seconds=5)
"""
SERVERS = {
    "uvicorn uvloop+httptools": UVICORN.replace("{loop}", "uvloop").replace("{http}", "httptools"),
    "uvicorn asyncio+h11": UVICORN.replace("{loop}", "asyncio").replace("{http}", "h11"),
    "hypercorn uvloop": HYPERCORN,
    "granian embedded": GRANIAN,
    "ours (server/listen.py)": OURS,
}
APP = f"""
ANSWER = {ANSWER!r}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"{len(ANSWER)}")]
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            await send({{"type": (await receive())["type"] + ".complete"}})
    while (await receive()).get("more_body"):
        pass
    await send({{"type": "http.response.start", "status": 200, "headers": HEADERS}})
    await send({{"type": "http.response.body", "body": ANSWER}})
"""


@dataclass(frozen=True)
class Run:
    """Requests a second, milliseconds, and the server's CPU milliseconds a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


@contextmanager
def running(code: str) -> Iterator[tuple[subprocess.Popen, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", APP + code.format(port=port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.wait()


async def connection(port: int, count: int, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    for _ in range(count):
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        took.append(time.perf_counter() - started)
    writer.close()


async def load(port: int, connections: int, requests: int) -> list[float]:
    took: list[float] = []
    await asyncio.gather(*(connection(port, requests // connections, took) for _ in range(connections)))
    return took


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(process: subprocess.Popen, port: int, connections: int, requests: int) -> Run:
    asyncio.run(load(port, connections, connections * 20))
    cpu, started = cpu_seconds(process.pid), time.perf_counter()
    took = asyncio.run(load(port, connections, requests))
    seconds, cpu = time.perf_counter() - started, cpu_seconds(process.pid) - cpu
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return Run(len(took) / seconds, p50, p99, 1000 * cpu / len(took))


def speaks_h2c(port: int) -> bool:
    """Does it answer HTTP/2's preface on the port of HTTP/1.1 with a SETTINGS frame?"""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        try:
            return sock.recv(9)[3:4] == b"\4"
        except OSError:
            return False


def exit_after_sigterm(process: subprocess.Popen) -> str:
    process.send_signal(signal.SIGTERM)
    try:
        return str(process.wait(timeout=10))
    except subprocess.TimeoutExpired:
        return "hangs"


@click.command()
@click.option("--requests", default=4000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(requests: int, repeats: int) -> None:
    """Print a row a server and number of connections: medians over repetitions."""
    runs: dict[tuple[str, int], list[Run]] = {}
    facts: dict[str, str] = {}
    for _ in range(repeats):
        for name, code in SERVERS.items():
            with running(code) as (process, port):
                for connections in (1, 8, 64):
                    runs.setdefault((name, connections), []).append(measure(process, port, connections, requests))
                h2c = "yes" if speaks_h2c(port) else "no"
                facts[name] = f"h2c {h2c}, exit after SIGTERM {exit_after_sigterm(process)}"
    click.echo(f"{'server':26} {'conns':>5} {'req/s':>8} {'p50 ms':>7} {'p99 ms':>7} {'CPU ms/req':>10}")
    for (name, connections), measured in runs.items():
        rate, p50, p99, cpu = np.median([(r.rate, r.p50, r.p99, r.cpu) for r in measured], axis=0)
        click.echo(f"{name:26} {connections:5} {rate:8.0f} {p50:7.2f} {p99:7.2f} {cpu:10.3f}")
    for name, fact in facts.items():
        click.echo(f"{name}: {fact}")


if __name__ == "__main__":
    main()
