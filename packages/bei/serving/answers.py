"""What is asked of a service beside the texts, and what it answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bei.tokenizer import Direction


@dataclass(frozen=True)
class Usage:
    """What a request cost: characters and tokens (truncated, with specials and prompt), and seconds; queue and
    inference are means over its texts."""

    characters: int
    tokens: int
    tokenization: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True)
class Answer:
    """What a task gave, one row a text or pair; each method says of what type."""

    rows: Any
    usage: Usage


@dataclass(frozen=True)
class Ranked(Answer):
    """`order`: int[...] as the scores are, the places of the pairs or of the labels, best first."""

    order: np.ndarray


@dataclass(frozen=True)
class Options:
    """How texts are read. `truncate` None means the server's own default, `truncation_direction` None the tokenizer's;
    `instruction` goes before texts as it is, or into the template of pairs; `max_tokens` cuts sooner than the model,
    and `max_document_tokens` the second text of each pair; `deadline` is a time.monotonic()."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    max_document_tokens: int | None = None
    add_special_tokens: bool = True
    deadline: float = float("inf")


DEFAULTS = Options()
"""Texts read as the model and the settings say."""
