"""Attacks on the tokenizer: texts of many megabytes, for every task. Each prints its answers and their seconds.

A task's attacks need a model of that task: --config examples/small-reranker/config.yaml or small-pii.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import click
import orjson

from benchmarks.wire import Ask, Http1, Lost

SIZE = 20_000_000  # characters, or bytes where a character has several
TEXTS = {
    "prose": "The cat sat on a mat. ",
    "one word": "a",
    "digits": "1234567",
    "whitespace": " ",
    "Japanese": "日本語の文章です。",
    "no place": "\x01",
    "marks": "\u0301\u0323",
    "letters that grow": "\ufdfa",
}
LIMIT = 120.0  # seconds for an answer


@dataclass(frozen=True)
class Posted:
    """Sends a body to a path repeatedly; a long text replaces `text` in it."""

    path: str
    body: dict[str, Any]
    text: str

    def filled(self) -> bytes:
        unit = TEXTS[self.text]
        long = unit * (SIZE // len(unit.encode()))
        return orjson.dumps({key: _put(value, long) for key, value in self.body.items()})

    async def __call__(self, port: int, until: float) -> None:
        ask, statuses, seconds = Ask(self.path, self.filled()), Counter(), []
        while time.monotonic() < until:
            http = Http1(port)
            try:
                reply = await http.ask(ask, LIMIT)
                statuses[reply.status] += 1
                seconds.append(reply.seconds)
            except (TimeoutError, Lost):
                statuses["lost"] += 1
            http.close()
        longest = max(seconds, default=0.0)
        answers = ", ".join(f"{count} of {status}" for status, count in statuses.items())
        click.echo(f"{self.path}, {self.text}: {answers}; {longest:.2f} s at most")


def _put(value: Any, long: str) -> Any:
    if value == "text":
        return long
    return [_put(item, long) for item in value] if isinstance(value, list) else value


TASKS = {
    "embed": ("/embed", {"inputs": "text"}),
    "the end": ("/embed", {"inputs": "text", "truncation_direction": "Left"}),
    "not cut": ("/embed", {"inputs": "text", "truncate": False}),
    "tokens": ("/tokenize", {"inputs": "text"}),
    "pairs": ("/rerank", {"query": "text", "texts": ["text"]}),
    "documents": ("/rerank", {"query": "a", "texts": ["text"]}),
    "windows": ("/predict_tokens", {"inputs": [["text"]]}),
}
ATTACKS = {f"{task}, {text}": Posted(*how, text) for task, how in TASKS.items() for text in TEXTS}
