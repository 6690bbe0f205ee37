"""The chunks of one reading: their tokens, and their places among these."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from bei.errors import Empty, Invalid
from bei.tokenizer.reading import Reader, joined_tokens

Chunks = tuple[list[np.ndarray], list[tuple[int, int]]]
"""The tokens in parts, int32[tokens] each, and the first and the last token, exclusive, of every chunk."""


def of_texts(reader: Reader, texts: Sequence[str], most: int) -> Chunks:
    """Texts one after the other. At least the first `most` tokens of each are read."""
    parts = reader.ids(texts, most)
    empty = next((i for i, part in enumerate(parts) if not len(part)), None)
    if empty is not None:
        raise Empty("`inputs` has a text without a token", param="inputs", place=empty)
    return parts, list(pairwise(accumulate(map(len, parts), initial=0)))


def of_spans(reader: Reader, text: str, spans: Sequence[tuple[int, int]], most: int) -> Chunks:
    """Spans of one text, in characters; a token belongs to each span that has a character of it."""
    tokens = joined_tokens(list(reader.tokens(text, most)))
    places = []
    for i, (start, stop) in enumerate(spans):
        first, last = (int(np.searchsorted(*of)) for of in ((tokens.ends, start, "right"), (tokens.starts, stop)))
        if stop > len(text) or first >= last:
            raise Invalid(f"`chunks` {i} has no token of the text, of {len(text)} characters", param="chunks")
        places.append((first, last))
    return [tokens.ids], places
