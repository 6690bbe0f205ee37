"""The messages between HTTP workers and the process with the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from bei import wire
from bei.batching import Entry, Outcome, Request, RowKind
from bei.errors import Ended, EngineDied, EngineFailed, Error, Expired, NotReady, Overloaded
from bei.tasks.sparse import Terms

_ERRORS = {kind.__name__: kind for kind in (Ended, EngineDied, EngineFailed, Expired, NotReady, Overloaded)}


@dataclass(slots=True, kw_only=True)
class Submit:
    """From a worker: the entries of a request. `lengths` are their numbers of tokens; ids, token_types:
    int32[sum(lengths)], None for types that are all 0. `marks` are the numbers of marked tokens, None for all, and
    marked: int32[sum(marks)]. `Entry` explains the others."""

    number: int
    deadline: float
    is_background: bool
    row_kind: RowKind
    shared: int
    lengths: list[int]
    prompt_tokens: list[int]
    attended: list[int | None]
    marks: list[int | None]
    ids: np.ndarray
    token_types: np.ndarray | None
    marked: np.ndarray

    @classmethod
    def of(cls, number: int, entries: Sequence[Entry]) -> Self:
        first, has_types = entries[0], any(entry.token_types is not None for entry in entries)
        return cls(
            number=number,
            deadline=first.request.deadline,
            is_background=first.request.is_background,
            row_kind=first.row_kind,
            shared=first.shared,
            lengths=[entry.tokens for entry in entries],
            prompt_tokens=[entry.prompt_tokens for entry in entries],
            attended=[entry.attended for entry in entries],
            marks=[None if entry.marked is None else len(entry.marked) for entry in entries],
            ids=np.concatenate([entry.ids for entry in entries]),
            token_types=np.concatenate([_types(entry) for entry in entries]) if has_types else None,
            marked=np.concatenate([_NONE, *(entry.marked for entry in entries if entry.marked is not None)]),
        )

    def entries(self, request: Request) -> list[Entry]:
        """Copies, because otherwise one request would keep the memory of the whole message."""
        ids, types = self.ids.copy(), None if self.token_types is None else self.token_types.copy()
        ends, marked = np.cumsum(self.lengths).tolist(), _parts(self.marked.copy(), self.marks)
        return [
            Entry(
                request,
                i,
                ids[end - length : end],
                token_types=None if types is None else types[end - length : end],
                prompt_tokens=prompt_tokens,
                attended=attended,
                row_kind=self.row_kind,
                shared=self.shared,
                marked=of,
            )
            for i, (end, length, prompt_tokens, attended, of) in enumerate(
                zip(ends, self.lengths, self.prompt_tokens, self.attended, marked, strict=True)
            )
        ]


@dataclass(slots=True)
class Drop:
    """From a worker: it does not need the request of this number any more."""

    number: int


@dataclass(slots=True)
class Joined:
    """From a worker: it is ready."""


@dataclass(slots=True)
class Opened:
    """To a worker: it may answer."""


@dataclass(slots=True)
class Fault:
    """To a worker: the reason why no batch can run now; None when that is over."""

    message: str | None


@dataclass(slots=True, kw_only=True)
class Settled:
    """To a worker: the outcome of entry `index` of request `number`: a row, sparse terms, or an error by its name.
    `queue` and `inference` are seconds."""

    number: int
    index: int
    queue: float
    inference: float
    row: np.ndarray | None = None
    term_indices: np.ndarray | None = None
    term_values: np.ndarray | None = None
    error: str | None = None
    message: str = ""
    retry_after: float = 0.0

    @classmethod
    def of(cls, number: int, outcome: Outcome) -> Self:
        result = outcome.result
        settled = cls(number=number, index=outcome.entry.index, queue=outcome.queue, inference=outcome.inference)
        if isinstance(result, Error):
            settled.error, settled.message = type(result).__name__, result.message
            settled.retry_after = getattr(result, "retry_after", 0.0)
        elif isinstance(result, Terms):
            settled.term_indices, settled.term_values = result.indices, result.values
        else:
            settled.row = result
        return settled

    @property
    def result(self) -> np.ndarray | Terms | Error:
        if self.error == "Overloaded":
            return Overloaded(self.message, retry_after=self.retry_after)
        if self.error is not None:
            return _ERRORS[self.error](self.message)
        if self.term_indices is not None and self.term_values is not None:
            return Terms(self.term_indices, self.term_values)
        return np.asarray(self.row)


FROM_WORKER = wire.Reader[Submit | Drop | Joined](Submit, Drop, Joined)
TO_WORKER = wire.Reader[Settled | Fault | Opened](Settled, Fault, Opened)


_NONE = np.zeros(0, np.int32)


def _parts(marked: np.ndarray, marks: Sequence[int | None]) -> list[np.ndarray | None]:
    ends = np.cumsum([count or 0 for count in marks]).tolist()
    return [None if count is None else marked[end - count : end] for end, count in zip(ends, marks, strict=True)]


def _types(entry: Entry) -> np.ndarray:
    return np.zeros(entry.tokens, np.int32) if entry.token_types is None else np.asarray(entry.token_types)
