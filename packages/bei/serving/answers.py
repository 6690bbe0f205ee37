"""The options of a request, and its answer."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bei.tokenizer import Direction


@dataclass(frozen=True)
class Usage:
    """The cost of a request: characters and tokens (after truncation, special tokens and prompt included), and seconds.
    `queue` and `inference` are means over its texts. `truncated_texts` counts those, or pairs, of which a part was not
    read."""

    characters: int
    tokens: int
    truncated_texts: int
    tokenization: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True)
class Answer:
    """The result of a task: one row per text or pair. Each method of Service gives its type."""

    rows: Any
    usage: Usage


@dataclass(frozen=True)
class Ranked(Answer):
    """`order`: int[...] of the shape of the scores, the indices of the pairs or of the labels, best first."""

    order: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Options:
    """How texts are read.

    `truncate` None means the server's default, `truncation_direction` None the tokenizer's. `instruction` goes before
    each text as it is, or into the template of pairs. `max_tokens` is a lower limit than the model's, and
    `max_document_tokens` is the limit for the second text of each pair. `deadline` is a time.monotonic(). A request in
    the background runs when no other waits.
    """

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    max_document_tokens: int | None = None
    add_special_tokens: bool = True
    deadline: float = float("inf")
    is_background: bool = False

    def within(self, tokens: int) -> "Options":
        """With at most so many tokens, if that is less."""
        return replace(self, max_tokens=min(tokens, self.max_tokens or tokens))


DEFAULTS = Options()
"""Texts are read by the defaults of the model and the settings."""
