"""An engine on each of two processors against one engine of two threads: their throughput, and the death of one of the
two under load.

Run: python -m benchmarks.replicas
"""

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import click
import uvloop

from bei.samples.mixes import text_sets
from benchmarks.processes import Tree, served
from benchmarks.several_models import CLIENTS, LIMIT, WARM_UP, bulk, throughput
from benchmarks.soak import percentiles
from benchmarks.wire import Http1, Reply

MODELS = ("any",)
_BACK = "the engine is back after"
_POLL = 0.005  # seconds


async def ask(server: Tree, texts: Iterator[str], until: asyncio.Event) -> list[Reply]:
    """The answers to one client, which asks for one text at a time."""
    http, replies = Http1(server.port), []
    while not until.is_set():
        replies.append(await http.ask(bulk(*MODELS, [next(texts)]), LIMIT))
    http.close()
    return replies


async def death(server: Tree, texts: Sequence[str], seconds: float) -> tuple[float, list[Reply], list[Reply]]:
    """Seconds from the death of one engine until it is back, and the answers before and after the death."""
    ended, before = asyncio.Event(), server.log.read_text().count(_BACK)
    endless = cycle(texts)
    clients = [asyncio.create_task(ask(server, endless, ended)) for _ in range(CLIENTS)]
    await asyncio.sleep(WARM_UP + seconds)
    pid = server.engine()
    assert pid is not None
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while server.log.read_text().count(_BACK) == before:
        await asyncio.sleep(_POLL)
    back = time.monotonic() - killed
    await asyncio.sleep(seconds)
    ended.set()
    replies = [reply for client in clients for reply in await client]
    return back, [of for of in replies if of.done < killed], [of for of in replies if of.done >= killed]


def tell(name: str, replies: Sequence[Reply]) -> None:
    took = percentiles([reply.seconds for reply in replies])
    statuses = sorted(Counter(reply.status for reply in replies).items())
    click.echo(f"  {name}: " + ", ".join(f"{count} of {status}" for status, count in statuses), nl=False)
    click.echo("; " + ", ".join(f"{key} {1000 * value:.0f} ms" for key, value in took.items()))


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Duration of each measurement.")
@click.option("--deaths", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/bei-replicas"), show_default=True)
def main(rounds: int, seconds: float, deaths: int, work: Path) -> None:
    work.mkdir(exist_ok=True)
    texts = text_sets()["mixed"]
    pair = sorted(os.sched_getaffinity(0))[:2]
    devices = ",".join(f"cpu:{number}" for number in pair)
    with ExitStack() as stack:
        one = stack.enter_context(served("config.yaml", "--threads", "2", log=work / "one.log"))
        two = stack.enter_context(served("config.yaml", "--devices", devices, log=work / "two.log"))
        ratios = []
        for _ in range(rounds):
            of_one = uvloop.run(throughput(one, MODELS, texts, seconds))
            of_two = uvloop.run(throughput(two, MODELS, texts, seconds))
            ratios.append((of_two[0] / of_one[0], of_two[1] / of_one[1]))
        rate, cpu = map(statistics.median, zip(*ratios, strict=True))
        click.echo(f"two replicas: {rate:.3f} of the tokens a second of one engine, {cpu:.3f} of the CPU per token")
        click.echo("  rounds: " + ", ".join(f"{of_rate:.3f}" for of_rate, _ in ratios))
        for _ in range(deaths):
            back, before, after = uvloop.run(death(two, texts, seconds))
            click.echo(f"one of two is killed, and back after {back:.2f} s")
            tell("before", before)
            tell("after", after)


if __name__ == "__main__":
    main()
