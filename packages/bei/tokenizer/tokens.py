"""The tokens of a text as /tokenize shows them."""

from collections.abc import Iterable, Iterator

import numpy as np

from bei.tokenizer.encoding import Token
from bei.tokenizer.reading import Tokens


def tokens_of(text: str, parts: Iterable[Tokens]) -> Iterator[Token]:
    """All parts are read before the first token is made. Else memory that Python and NumPy cache while reading would
    lie between the tokens, and keep a megabyte per block from being freed."""
    for columns in list(_columns(text, parts)):
        for id, start, end, first, last in zip(*(column.tolist() for column in columns), strict=True):
            yield Token(id, text[start:end], False, first, last)


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
