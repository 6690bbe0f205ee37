"""Stores with an input file and a job, and the lines of both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bei.jobs import records
from bei.jobs.records import Job, Order, StoredFile
from bei.jobs.store import Store

ENDPOINT = "/v1/embeddings"


class Clock:
    """A time that a test sets."""

    def __init__(self, now: float = 1_000_000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


def line(custom_id: str, text: str = "the cat", **changed: Any) -> bytes:
    fields = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"input": text}, **changed}
    return json.dumps(fields).encode() + b"\n"


def stored(store: Store, content: bytes, expires: float | None = None) -> StoredFile:
    with store.upload() as upload:
        upload.write(content)
        upload.finish()
    made = StoredFile(
        id=upload.id, filename="a.jsonl", purpose="batch", size=upload.size, created=store.clock(), expires=expires
    )
    return store.add(made)


def ordered(store: Store, input_file_id: str, seconds: float = 86400, **changed: Any) -> Job:
    now = store.clock()
    fields: dict[str, Any] = {
        **{"id": records.new_id("batch_"), "created": now, "expires": now + seconds, "window": "24h"},
        **{"endpoint": ENDPOINT, "base": None, "metadata": None, "input_file_id": input_file_id},
        "output_seconds": None,
        "output_file_id": records.new_id("file-"),
        "error_file_id": records.new_id("file-"),
    }
    return store.create(Order(**{**fields, **changed}))


def answers(store: Store, id: str) -> Sequence[dict[str, Any]]:
    """The objects of a file of answers."""
    return [json.loads(one) for one in content(store, id).splitlines()]


def content(store: Store, id: str) -> bytes:
    return store.content(id).read_bytes()


def store_in(folder: Path, most_bytes: int = 1 << 30, clock: Clock | None = None) -> Store:
    return Store(folder / "batches", most_bytes, clock or Clock())
