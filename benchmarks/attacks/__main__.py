"""Runs attacks against a server of ours: the memory that they leave, and the time that others wait meanwhile."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import orjson
import uvloop

from benchmarks.attacks.attack import attack, attacks
from benchmarks.processes import Tree, served
from benchmarks.soak import percentiles
from benchmarks.wire import Ask, Http1, Lost

KEY = "k1"
PAUSE = 0.02  # seconds between two requests of another client
SETTLE = 3.0  # seconds after an attack, before memory is read again
LIMIT = 60.0  # seconds after which a request hangs
ASKS = [
    Ask("/health", method="GET"),
    Ask("/v1/embeddings", orjson.dumps({"input": "What is Deep Learning?"}), {"authorization": f"Bearer {KEY}"}),
]


async def others(server: Tree, until: asyncio.Future) -> tuple[list[float], int, float]:
    """Seconds of the requests of another client, the number without an answer, and the peak of memory."""
    http, seconds, lost, peak = Http1(server.port), [], 0, server.resident()
    while not until.done():
        for ask in ASKS:
            try:
                reply = await http.ask(ask, LIMIT)
                seconds.append(reply.seconds)
                lost += reply.status != 200
            except (TimeoutError, Lost):
                lost += 1
        peak = max(peak, server.resident())
        await asyncio.sleep(PAUSE)
    http.close()
    await until
    return seconds, lost, peak


async def measured(server: Tree, module: str, name: str, seconds: float) -> str:
    loop = asyncio.get_running_loop()
    await others(server, asyncio.ensure_future(asyncio.sleep(SETTLE)))
    before = server.resident()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        attacking = loop.run_in_executor(pool, attack, module, name, server.port, seconds)
        took, lost, peak = await others(server, attacking)
    await asyncio.sleep(SETTLE)
    waits = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in percentiles(took).items())
    after = server.resident()
    return f"{name}: memory {before:.0f} -> {after:.0f} MB (at most {peak:.0f}); others: {waits}, {lost} not answered"


@click.command(help=__doc__)
@click.argument("module", type=click.Choice(sorted(f.stem for f in Path(__file__).parent.glob("[!_]*.py"))))
@click.argument("names", nargs=-1)
@click.option("--config", default="config.yaml", show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Duration of each attack.")
@click.option("--key/--no-key", default=False, help="Whether the server asks for a key, which the attacker lacks.")
@click.option("--log", type=Path, default=Path("/tmp/bei-attacks.log"), show_default=True)
def main(module: str, names: tuple[str, ...], config: str, workers: int, seconds: float, key: bool, log: Path) -> None:
    known = attacks(module)
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no attack {unknown.pop()}; there are {', '.join(known)}")
    flags = ["--workers", str(workers), *(["--api-key", KEY] if key else [])]
    for name in names or known:
        with served(config, *flags, log=log) as server:
            click.echo(uvloop.run(measured(server, module, name, seconds)))


if __name__ == "__main__":
    main()
