"""Compares HTTP servers by their cost for a small request: one ASGI app on each, interleaved round by round.

The app reads the body and answers 8 kB, the size of an embedding of 384 numbers. The client shares the machine, so
requests per second understate every server alike; the server's own CPU seconds (from /proc) are the steadier figure.
Ratios are medians over rounds of (theirs / ours), never of figures from different rounds. Run: python -m
benchmarks.http_servers
"""

import signal
import subprocess
import time
from importlib.metadata import version

import click
import numpy as np

from benchmarks.http_load import LIMIT, ROOT, Load, Running, http1, http2, running, speaks_h2c

APP = """
import asyncio
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"8192")]
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    while scope["path"] != "/early" and (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    headers = [*HEADERS, (b"x-path", scope["path"].encode())]
    await send({"type": "http.response.start", "status": 413 if scope["path"] == "/early" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * 8192})
"""
NULL_ENGINE = f"""
from pathlib import Path
from bei.server.app import asgi
from bei.serving.service import Service
from bei.serving.registry import Registry
from bei.settings import Settings
service = Service(Settings.from_file(Path({str(ROOT / "config.yaml")!r}), engine="null"))
service.load()
app = asgi(Registry(service))
"""
APPS = {"8 kB": APP, "null engine": NULL_ENGINE}
UVICORN = """
import uvicorn
uvicorn.run(app, host="127.0.0.1", port={port}, log_level="critical", access_log=False, timeout_keep_alive=75, %s)
"""
HYPERCORN = """
import asyncio, signal, uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
config = Config()
config.bind, config.keep_alive_timeout, config.keep_alive_max_requests = ["127.0.0.1:{port}"], 75, 10**9
config.errorlog = None
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(app, config, shutdown_trigger=stop.wait)
uvloop.run(main())
"""
GRANIAN = """
import asyncio, signal, uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
async def main():
    server = Server(app, address="127.0.0.1", port={port}, interface=Interfaces.ASGI, http=HTTPModes.auto,
                    log_enabled=False)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()
uvloop.run(main())
"""
OURS = """
import sys
from bei.server import listen
sys.exit(listen.serve(app, listen.bind("127.0.0.1", {port}), drain_seconds=30))
"""
SERVERS = {
    "ours (server/listen.py)": OURS,
    "uvicorn httptools": UVICORN % 'loop="uvloop", http="httptools"',
    "uvicorn h11": UVICORN % 'loop="uvloop", http="h11"',
    "uvicorn zttp+http2": UVICORN % 'loop="uvloop", http="zttp", http2=True',
    "hypercorn": HYPERCORN,
    "granian embedded": GRANIAN,
}


def pipelining(server: Running) -> str:
    """Sends eight requests in one write: are they answered, and in order?"""
    paths = ["/slow", *(f"/{i}" for i in range(7))]
    with server.connect() as sock:
        sock.sendall(b"".join(b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode() for path in paths))
        received = b""
        while received.count(b"x" * 8192) < len(paths):
            chunk = sock.recv(1 << 16)
            if not chunk:
                return f"{received.count(b'x' * 8192)} of {len(paths)}"
            received += chunk
    found = [line[8:].decode() for line in received.split(b"\r\n") if line.startswith(b"x-path")]
    return "in order" if found == paths else f"out of order: {found}"


def largest_head(server: Running) -> str:
    """The largest header, by powers of two up to 4 MiB, that is answered with 200."""
    best = 0
    for bits in range(12, 23):
        with server.connect(2) as sock:
            try:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: %s\r\n\r\n" % (b"a" * (1 << bits)))
                if not sock.recv(64).startswith(b"HTTP/1.1 200"):
                    break
            except OSError:
                break
        best = 1 << bits
    return f"{best >> 10} KiB" + (" or more" if best == 1 << 22 else "")


def early_answer(server: Running) -> str:
    """The app answers 413 without reading; the client sends its 16 MB first, and only then reads."""
    with server.connect(5) as sock:
        try:
            sock.sendall(
                b"POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 16000000\r\n\r\n" + b"x" * 16_000_000
            )
            return "answered" if sock.recv(12) == b"HTTP/1.1 413" else "closed, no answer"
        except TimeoutError:
            return "hangs"
        except OSError:
            return "reset"


def drain(server: Running) -> str:
    """SIGTERM with a request in flight: is it answered, and what is the exit status?"""
    with server.connect() as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        try:
            answered = sock.recv(12) == b"HTTP/1.1 200"
        except OSError:
            answered = False
    try:
        return f"{'answered' if answered else 'lost'}, exit {server.process.wait(timeout=LIMIT)}"
    except subprocess.TimeoutExpired:
        return f"{'answered' if answered else 'lost'}, hangs"


def behavior(server: Running) -> dict[str, str]:
    return {
        "pipelining": pipelining(server),
        "largest head": largest_head(server),
        "early 413": early_answer(server),
        "SIGTERM in flight": drain(server),
    }


def ratio(theirs: list[Load], ours: list[Load], field: str) -> float:
    return float(np.median([getattr(t, field) / getattr(o, field) for t, o in zip(theirs, ours, strict=True)]))


def show(loads: dict[str, dict[str, list[Load]]], baseline: str) -> None:
    columns = (
        f"{'load':>9} {'req/s':>7} {'p50 ms':>7} {'p99 ms':>7} {'CPU s/1000':>10} {'CPU ratio':>9} {'p50 ratio':>9}"
    )
    click.echo(f"\n{'server':24} {columns}")
    for name, kinds in loads.items():
        for kind, runs in kinds.items():
            rate, p50, p99, cpu = np.median([(r.rate, r.p50, r.p99, r.cpu) for r in runs], axis=0)
            ours = loads[baseline].get(kind, runs)
            click.echo(f"{name:24} {kind:>9} {rate:7.0f} {p50:7.3f} {p99:7.2f} {cpu:10.4f} "
                       f"{ratio(runs, ours, 'cpu'):8.2f}x {ratio(runs, ours, 'p50'):8.2f}x")  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--requests", default=10_000)
@click.option("--rounds", default=5)
@click.option("--servers", default=",".join(SERVERS), help="Some of them; ratios are to the first.")
@click.option("--app", type=click.Choice(list(APPS)), default="8 kB", help="What answers.")
def main(requests: int, rounds: int, servers: str, app: str) -> None:
    """Prints loads (medians over rounds), then each server's behavior in unusual cases."""
    names = servers.split(",")
    click.echo(
        ", ".join(f"{p} {version(p)}" for p in ("uvicorn", "httptools", "zttp", "uvloop", "hypercorn", "granian"))
    )
    loads: dict[str, dict[str, list[Load]]] = {name: {} for name in names}
    facts: dict[str, dict[str, str]] = {}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with running(APPS[app], SERVERS[name]) as server:
                for connections in (1, 8, 64):
                    loads[name].setdefault(f"{connections} conns", []).append(http1(server, connections, requests))
                if speaks_h2c(server):
                    loads[name].setdefault("h2c", []).append(http2(server, requests // 10))
                if not turn:
                    start = {"start": f"{server.start:.2f} s", "RSS": f"{server.resident():.0f} MB"}
                    facts[name] = start | {"h2c": "yes" if "h2c" in loads[name] else "no"}
                    facts[name] |= behavior(server) if app == "8 kB" else {}
    show(loads, names[0])
    for name, found in facts.items():
        click.echo(f"\n{name}: " + "; ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
