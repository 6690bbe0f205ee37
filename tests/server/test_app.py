"""The ASGI application in this process, against a client whose every message the test chooses."""

import asyncio
import json
import threading
from pkgutil import resolve_name

import pytest

from bei.server.app import asgi

LIMIT = 20.0


class Client:
    """One call over HTTP/1.1: sends a body, and leaves when it is told to."""

    def __init__(self, application, path: str, value: object):
        self._body = json.dumps(value).encode()
        self._sent, self._gone = False, asyncio.Event()
        self.status, self.parts = 0, []
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": []}
        self.task = asyncio.ensure_future(application(scope, self._receive, self._send))

    async def _receive(self):
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.status = message.get("status", self.status)
        self.parts.append(message.get("body", b""))

    def leave(self) -> None:
        self._gone.set()

    async def answer(self) -> int:
        async with asyncio.timeout(LIMIT):
            await self.task
        return self.status


@pytest.mark.parametrize("stage", ["parsing", "tokenizing"])
def test_a_client_that_leaves_holds_its_bytes_until_its_work_ends(start_service, monkeypatch, stage):
    service = start_service(payload_limit=300_000, max_bytes_in_flight=400_000)
    entered, go = threading.Event(), threading.Event()
    owner, name = {
        "parsing": ("bei.api.pieces", "read"),
        "tokenizing": ("bei.tokenizer.Tokenizer", "encode"),
    }[stage]

    def slow(of):
        def run(*args, **more):
            entered.set()
            assert go.wait(LIMIT)
            return of(*args, **more)

        return run

    async def scenario():
        application = asgi(service)
        with monkeypatch.context() as patch:
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
