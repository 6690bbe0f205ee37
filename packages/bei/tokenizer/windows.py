"""Long texts in overlapping windows, for a tagger."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bei.tokenizer.encoding import Encoding, Windows
from bei.tokenizer.reading import Tokens
from bei.tokenizer.template import Template, inner, windows


def windows_of(
    text: str, tokens: Tokens, continues: np.ndarray, template: Template, max_tokens: int
) -> Iterator[tuple[Encoding, np.ndarray]]:
    """Each window of a text, and int32[6, tokens]: ids, starts, ends, and the flags special, continues and inner."""
    before, after = len(template.fixed[0]), len(template.fixed[1])
    room = max_tokens - template.size
    parts = windows(len(tokens), room, overlap=room // 4)
    for part, own in zip(parts, inner(parts), strict=True):
        here, body = slice(part.start, part.stop), slice(before, before + len(part))
        ids, types = template.wrap(tokens.ids[here])
        columns = np.zeros((6, len(ids)), np.int32)
        columns[0], columns[3] = ids, 1
        columns[1, body], columns[2, body] = tokens.starts[here], tokens.ends[here]
        columns[3, body], columns[4, body] = 0, continues[here]
        start = own.start - part.start + (before if part.start else 0)
        stop = own.stop - part.start + before + (after if part.stop == len(tokens) else 0)
        columns[5, start:stop] = 1
        yield Encoding(ids, 0 if part.start else len(text), token_types=types), columns


def joined(texts: Sequence[Sequence[tuple[Encoding, np.ndarray]]]) -> Windows:
    """The windows of all the texts."""
    encodings = [encoding for windows in texts for encoding, _ in windows]
    owners = np.array([i for i, windows in enumerate(texts) for _ in windows])
    lengths = np.array([len(encoding.ids) for encoding in encodings])
    columns = np.concatenate([columns for windows in texts for _, columns in windows], axis=1)
    flags = columns[3:].astype(bool)
    return Windows(encodings, owners, lengths, *columns[:3], *flags)


def checked(parts: Iterable[Tokens], before: int, check: Callable[[int], None]) -> list[Tokens]:
    """The parts, with a call of `check` after each: `before`, and the tokens so far."""
    read = []
    for part in parts:
        read.append(part)
        before += len(part)
        check(before)
    return read
