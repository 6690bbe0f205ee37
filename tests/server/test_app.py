"""The ASGI application in this process, against a client whose every message the test chooses."""

import asyncio
import gc
import json
import threading
import tracemalloc
from pkgutil import resolve_name

import pytest

from bei.api import Call
from bei.errors import TooSlow
from bei.server import body_reader, connections
from bei.server.app import asgi
from bei.serving.registry import Registry
from tests.support.waiting import until, wait_until

LIMIT = 20.0


class Client:
    """One call over HTTP/1.1: sends a body, and leaves when told to."""

    def __init__(self, application, path: str, value: object):
        self._body = json.dumps(value).encode()
        self._sent, self._gone = False, asyncio.Event()
        self.status, self.parts, self.reads = 0, [], asyncio.Event()
        self.reads.set()
        self.aborted = False
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "headers": [(b"host", b"localhost")],
        }
        scope["extensions"] = {connections.ABORT: self._abort}
        self.task = asyncio.ensure_future(application(scope, self._receive, self._send))

    async def _receive(self):
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def _abort(self) -> None:
        self.aborted = True

    async def _send(self, message):
        await self.reads.wait()
        self.status = message.get("status", self.status)
        self.parts.append(message.get("body", b""))

    def leave(self) -> None:
        self._gone.set()

    async def answer(self) -> int:
        async with asyncio.timeout(LIMIT):
            await self.task
        return self.status


@pytest.mark.parametrize("step", ["parsing", "tokenizing"])
def test_a_client_that_leaves_holds_its_bytes_until_its_work_ends(start_service, monkeypatch, step):
    service = start_service(payload_limit=300_000, max_bytes_in_flight=400_000)
    entered, go = threading.Event(), threading.Event()
    owner, name = {
        "parsing": ("bei.api.pieces", "read"),
        "tokenizing": ("bei.tokenizer.Tokenizer", "encode"),
    }[step]

    def slow(of):
        def run(*args, **more):
            entered.set()
            assert go.wait(LIMIT)
            return of(*args, **more)

        return run

    async def scenario():
        application = asgi(Registry(service))
        with monkeypatch.context() as patch:
            patch.setattr(connections, "WATCH_AFTER", 0)
            patch.setattr(resolve_name(owner), name, slow(resolve_name(f"{owner}.{name}")))
            client = Client(application, "/embed", {"inputs": ["the cat " * 1000] * 36})
            await asyncio.to_thread(entered.wait, LIMIT)
        client.leave()
        other = Client(application, "/embed", {"inputs": "the dog", "note": "x" * 200_000})
        assert await other.answer() == 429
        assert not client.task.done()
        go.set()
        assert await client.answer() == 0
        other = Client(application, "/embed", {"inputs": "the dog", "note": "x" * 200_000})
        assert await other.answer() == 200

    asyncio.run(scenario())


MANY = {"inputs": ["the cat sat on the mat"] * 1000}  # about 600 KB to answer, and 200 KB of rows


def test_answers_that_are_not_read_are_counted_and_small_ones_go_on(start_service):
    service = start_service(payload_limit=100_000, max_bytes_in_flight=2_000_000)

    async def scenario():
        application = asgi(Registry(service))
        slow = [Client(application, "/embed", MANY) for _ in range(2)]
        for client in slow:
            client.reads.clear()
        await until(lambda: service.in_flight.held >= 1_500_000)
        assert await Client(application, "/embed", MANY).answer() == 429
        assert await Client(application, "/embed", {"inputs": "the dog"}).answer() == 200
        for client in slow:
            client.reads.set()
            assert await client.answer() == 200
        assert await Client(application, "/embed", MANY).answer() == 200

    asyncio.run(scenario())
    assert service.in_flight.held == 0


def test_an_answer_that_is_not_read_in_time_ends_the_connection(start_service, monkeypatch, caplog):
    service = start_service()
    monkeypatch.setattr(connections, "MOST_READING_SECONDS", 0.1)
    caplog.set_level("INFO", "bei")

    async def scenario():
        client = Client(asgi(Registry(service)), "/embed", MANY)
        client.reads.clear()
        await client.answer()
        return client.aborted, len(b"".join(client.parts))

    aborted, sent = asyncio.run(scenario())
    assert aborted
    assert sent == 0
    assert "its client did not read the answer" in caplog.text
    assert service.in_flight.held == 0


@pytest.mark.parametrize(
    ("status", "inputs"),
    [
        (200, ["the cat " * 10_000] * 20),
        (413, [[]] * 400_000),
        (413, ["a"] * 30_000 + ["a" * 1_000_000]),
        (413, ["the cat " * 100] * 2049),
        (422, ["the cat " * 10_000] * 20 + [3]),
        (400, "\ud800" * 300_000),
    ],
    ids=["answered", "too many values", "too many texts", "a large batch", "a wrong field", "no JSON"],
)
def test_no_body_stays_when_its_call_has_ended(start_service, status, inputs):
    """Not even until a garbage collection."""
    service = start_service()

    async def one() -> int:
        return await Client(asgi(Registry(service)), "/embed", {"inputs": inputs}).answer()

    asyncio.run(one())
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        assert {asyncio.run(one()) for _ in range(4)} == {status}
        wait_until(lambda: tracemalloc.get_traced_memory()[0] <= 1_000_000)  # a thread may still hold it
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_body_that_never_ends_is_given_up(start_service, monkeypatch):
    """However steadily it arrives, it occupies memory meanwhile."""
    service = start_service()
    monkeypatch.setattr(body_reader, "MOST_SECONDS", 0.2)

    async def steadily():
        await asyncio.sleep(0.01)  # the client's pace
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def scenario():
        with service.in_flight.request(), pytest.raises(TooSlow, match=r"took more than 0.2 s"):
            await body_reader.BodyReader(1 << 30, service.in_flight).read(Call("POST", "/embed"), steadily, wanted=True)

    asyncio.run(asyncio.wait_for(scenario(), LIMIT))
    assert service.in_flight.held == 0
