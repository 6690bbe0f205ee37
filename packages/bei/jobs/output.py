"""The answers of a job: two files of lines, and the record of how far they go."""

import hashlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from bei.jobs.lines import Line
from bei.jobs.records import Order, Progress
from bei.jobs.store import JobFolder

_COMMIT_SECONDS = 0.25


@dataclass(frozen=True)
class Answered:
    """A reply to a line: its body is JSON in one line."""

    status: int
    body: bytes
    tokens: int


def request_id(order: Order, line: int) -> str:
    """The same one whenever the line is answered."""
    return hashlib.blake2b(f"{order.id} {line}".encode(), digest_size=16).hexdigest()


class Output:
    """A job's answers in the order of its lines. Those that were written after the last commit, by a process that was
    killed, are cut off at the beginning; the end commits. Raises OSError."""

    def __init__(self, folder: JobFolder, order: Order, progress: Progress):
        self._folder, self._order, self.progress = folder, order, progress
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._output = opened.enter_context(_cut(self._folder.output, self.progress.output_size))
            self._errors = opened.enter_context(_cut(self._folder.errors, self.progress.error_size))
            opened.callback(self.commit)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *fault: Any) -> None:
        self._opened.__exit__(*fault)

    def answer(self, line: Line, answered: Answered) -> bool:
        """Adds a reply, and returns whether it is a success; the others are among the errors."""
        id = request_id(self._order, line.number)
        response = b'{"status_code":%d,"request_id":"%s","body":%s}' % (answered.status, id.encode(), answered.body)
        is_success = answered.status == 200
        self.progress.tokens += answered.tokens
        self._add(line, id, response, b"null", is_success=is_success)
        return is_success

    def leave(self, line: Line, code: str, message: str) -> None:
        """Adds that a line was not run."""
        id = request_id(self._order, line.number)
        self._add(line, id, b"null", orjson.dumps({"code": code, "message": message}), is_success=False)

    def _add(self, line: Line, id: str, response: bytes, error: bytes, *, is_success: bool) -> None:
        known = orjson.dumps({"id": f"batch_req_{id}", "custom_id": line.custom_id})[:-1]
        record = b'%s,"response":%s,"error":%s}\n' % (known, response, error)
        progress = self.progress
        (self._output if is_success else self._errors).write(record)
        if is_success:
            progress.completed += 1
            progress.output_size += len(record)
        else:
            progress.failed += 1
            progress.error_size += len(record)
        progress.offset, progress.line = line.end, line.number

    @property
    def is_due(self) -> bool:
        return time.monotonic() > self._committed + _COMMIT_SECONDS

    def commit(self) -> None:
        """From now on what is added so far stays, whatever happens."""
        for file in (self._output, self._errors):
            file.flush()
            os.fsync(file.fileno())
        self._folder.keep(self.progress)
        self._committed = time.monotonic()


def _cut(place: Path, size: int) -> BinaryIO:
    """A file of this size, opened at its end."""
    place.touch(0o600)
    file = place.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
