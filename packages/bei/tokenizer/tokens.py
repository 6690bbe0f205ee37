"""The tokens of a text as /tokenize shows them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bei.tokenizer.encoding import Token
from bei.tokenizer.reading import Tokens

_AT_ONCE = 1 << 12  # tokens whose numbers are made objects


class TextTokens:
    """The tokens of a text, special ones before and after them. A token is made when it is asked for: as an object it
    takes 300 bytes, and as a row of the columns 28."""

    def __init__(self, text: str, parts: Iterable[Tokens], before: Sequence[Token] = (), after: Sequence[Token] = ()):
        self._text, self._before, self._after = text, before, after
        self._columns = list(_columns(text, parts))
        self._length = sum(len(ids) for ids, *_ in self._columns)

    def __len__(self) -> int:
        return len(self._before) + self._length + len(self._after)

    def __iter__(self) -> Iterator[Token]:
        yield from self._before
        for columns in self._columns:
            for at in range(0, len(columns[0]), _AT_ONCE):
                rows = (column[at : at + _AT_ONCE].tolist() for column in columns)
                for id, start, end, first, last in zip(*rows, strict=True):
                    yield Token(id, self._text[start:end], False, first, last)
        yield from self._after


def _columns(text: str, parts: Iterable[Tokens]) -> Iterator[tuple[np.ndarray, ...]]:
    """For each part, the ids of its tokens, and their starts and ends in characters and in bytes."""
    at = in_bytes = 0
    for tokens in parts:
        if not len(tokens):
            continue
        low, high = int(tokens.starts.min()), int(tokens.ends.max())
        at, in_bytes = low, in_bytes + int(_byte_offsets(text[at:low])[-1])
        offsets = in_bytes + _byte_offsets(text[low:high])
        starts, ends = tokens.starts, tokens.ends
        yield tokens.ids, starts, ends, offsets[starts - low], offsets[ends - low]


def _byte_offsets(text: str) -> np.ndarray:
    """int64[characters + 1]: the byte at which each character starts in UTF-8, and the end of the text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.append(0, np.cumsum(sizes))
