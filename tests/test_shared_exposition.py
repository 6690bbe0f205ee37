"""Many who ask for the metrics at once cost one rendering."""

import asyncio
import threading
from types import SimpleNamespace

from bei.api import operations
from bei.metrics import Metrics


def test_who_asks_before_a_rendering_begins_shares_it():
    began, go, made = threading.Event(), threading.Event(), []

    def exposition() -> bytes:
        made.append(b"%d" % len(made))
        began.set()
        assert go.wait(10)
        return made[-1]

    async def ask() -> bytes:
        return (await operations.prometheus(SimpleNamespace(metrics=metrics), None, None)).body

    async def scenario() -> list[bytes]:
        first = asyncio.create_task(ask())
        await asyncio.to_thread(began.wait, 10)
        later = [asyncio.create_task(ask()) for _ in range(500)]
        await asyncio.sleep(0)
        later.pop().cancel()  # one that leaves takes nothing from the others
        await asyncio.sleep(0)
        go.set()
        return [await first, *await asyncio.gather(*later)]

    class Rendered(Metrics):
        def exposition(self) -> bytes:
            return exposition()

    metrics = Rendered()
    assert asyncio.run(scenario()) == [b"0", *[b"1"] * 499]
    assert len(made) == 2
