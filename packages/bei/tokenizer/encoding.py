"""What goes into a tokenizer, and what comes of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Input = str | list[int] | tuple[str, str]
"""A text, its token ids, or a pair of texts."""

Role = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids: int32[tokens], with specials; `prompt_tokens` of them are the prompt's and the specials before it; types:
    int32[tokens], None where all are 0. Arrays, for requests that wait hold many.

    Of a ColBERT model: the leading `attended` tokens are seen by all; `scored`: bool[tokens], those that are compared.
    """

    ids: np.ndarray
    characters: int
    prompt_tokens: int = 0
    types: np.ndarray | None = None
    attended: int | None = None
    scored: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """`start` and `stop` are offsets into the text's UTF-8 bytes, as TEI's; None for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts, as a tagger sees them: a sequence of W encodings, and their T tokens end to end.

    owners: int[W], the text of each window; lengths: int[W], its tokens. Of each token, ids: int[T]; starts and ends:
    int[T], in characters of its text; special: bool[T]; continues: bool[T], it goes on with the word of the one before;
    inner: bool[T], no neighboring window knows it better.
    """

    encodings: list[Encoding]
    owners: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    special: np.ndarray
    continues: np.ndarray
    inner: np.ndarray

    def __len__(self) -> int:
        return len(self.encodings)

    def __iter__(self) -> Iterator[Encoding]:
        return iter(self.encodings)
