"""The table of a sentencepiece normalizer: a double array, which maps keys to places in the replacements after it
(github.com/s-yata/darts-clone). Each replacement ends with a zero."""

import unicodedata
from collections.abc import Iterator

import numpy as np

_KEY, _STEPS = 64, 1 << 18  # bytes of a key, and steps that are followed; known tables need 12 and 10,000
_HAS_VALUE, _IS_VALUE = 1 << 8, 1 << 31


def longest(table: bytes) -> int:
    """The characters of the longest replacement."""
    return max(1, *(len(text.decode(errors="replace")) for text in _texts(table).split(b"\0")))


def of_decomposed(table: bytes) -> int:
    """The most characters that one becomes in a text that is in the form NFKD already, where most keys never match."""
    most = 1
    try:
        for key, length in _keys(table):
            known = key.decode(errors="replace")
            if length > most and unicodedata.normalize("NFKD", known) == known:
                most = max(most, -(-length // len(known)))
    except ValueError:
        return longest(table)
    return most


def _texts(table: bytes) -> bytes:
    return table[4 + int.from_bytes(table[:4], "little") :]


def _keys(table: bytes) -> Iterator[tuple[bytes, int]]:
    """The keys with a replacement of more than one character, and its characters: found from their ends, for branches
    of the tree are shared. Raises ValueError for a table that is unlike any known."""
    size = max(0, min(int.from_bytes(table[:4], "little"), len(table) - 4))
    units = np.frombuffer(table[4 : 4 + size - size % 4], "<u4").astype(np.int64)
    bases = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    ends = np.flatnonzero((units & _HAS_VALUE != 0) & (bases < len(units)))
    lengths = _lengths(_texts(table), units[bases[ends]] & ~_IS_VALUE)
    at, lengths = ends[lengths > 1], lengths[lengths > 1]
    order = np.argsort(bases, kind="stable")
    in_order = bases[order]
    keys, steps = [b""] * len(at), 0
    while len(at):
        labels = units[at] & 255
        firsts, lasts = (np.searchsorted(in_order, at ^ labels, side) for side in ("left", "right"))
        counts = np.where((labels > 0) & (units[at] & _IS_VALUE == 0), lasts - firsts, 0)
        steps += int(counts.sum())
        if steps > _STEPS or len(keys[0]) > _KEY:
            raise ValueError("no known table is like this one")
        from_which = np.repeat(np.arange(len(at)), counts)
        among = np.arange(len(from_which)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = [bytes([labels[i]]) + keys[i] for i in from_which.tolist()]
        at, lengths = order[firsts[from_which] + among], lengths[from_which]
        yield from ((keys[i], int(lengths[i])) for i in np.flatnonzero(at == 0))


def _lengths(texts: bytes, places: np.ndarray) -> np.ndarray:
    """The characters of the replacements that begin at some places."""
    content = np.frombuffer(texts + b"\0", np.uint8)
    before = np.append(0, np.cumsum(content & 0xC0 != 0x80))
    zeros = np.flatnonzero(content == 0)
    places = np.minimum(places, len(texts))
    return np.asarray(before[zeros[np.searchsorted(zeros, places)]] - before[places])
