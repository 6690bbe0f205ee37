"""The input and output types of a tokenizer."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

Input = str | list[int] | tuple[str, str]
"""A text, its token ids, or a pair of texts."""

Role = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids: int32[tokens], with specials; `prompt_tokens`: how many leading tokens are the prompt and the specials
    before it; token_types: int32[tokens], None if all are 0. They are arrays because waiting requests hold many.
    `is_truncated`: the text, or a text of the pair, has more tokens than these.

    `marked`: int32[M], the tokens that have rows, of a model that compares some of them; None for all. For a ColBERT
    model: the leading `attended` tokens are attended to.
    """

    ids: np.ndarray
    characters: int
    _: KW_ONLY
    prompt_tokens: int = 0
    token_types: np.ndarray | None = None
    is_truncated: bool = False
    attended: int | None = None
    marked: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """`start` and `stop` are offsets into the text's UTF-8 bytes, as in TEI; None for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts for a tagger: a sequence of W encodings, and their T tokens end to end.

    owners: int[W], the text of each window; lengths: int[W], its tokens. For each token, ids: int[T]; starts and ends:
    int[T], in characters of its text; special: bool[T]; continues: bool[T], it continues the word of the token before;
    inner: bool[T], it is not closer to the middle of a neighboring window.
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


@dataclass(frozen=True, slots=True)
class Chunked:
    """A sequence of one encoding, and the tokens of each chunk in it."""

    encoding: Encoding
    chunks: list[slice]

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Encoding]:
        return iter((self.encoding,))
