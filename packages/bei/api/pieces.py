"""Large JSON bodies: counts their values before any is made, and reads them in pieces, so that other threads run
between.

One call of a parser holds the interpreter's lock until it ends: half a minute for 64 MB of objects. So numpy, which
does not hold the lock, first finds the commas and brackets outside strings. From these a body is refused, or cut at
commas.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json

from bei.errors import Invalid, Malformed, TooLarge, one_line

_CHUNK = 1 << 20  # bytes that are scanned at once
_PIECE = 1 << 20  # bytes that are parsed at once, in about 3 ms for text and 20 ms for numbers
_LONGEST = len(r"\ud83d\ude00")  # bytes of one character, at most
_NUMBER = 36  # bytes of a number in a list
_DEPTH = 200  # nesting of lists and objects, as the parser's own limit
_AROUND = 1 << 16  # bytes of a name, and of blanks, around a large value
_KEY = re.compile(rb'\s*"(?:[^"\\]|\\.){0,%d}"\s*:\s*' % (_AROUND // 2), re.DOTALL)
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_COMMA, _OPEN, _CLOSE = 1, 2, 3
_MARKS = {ord(","): _COMMA, **dict.fromkeys(b"[{", _OPEN), **dict.fromkeys(b"]}", _CLOSE)}
_KINDS = np.array([_MARKS.get(byte, 0) for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Bounds:
    """The limits of one body: `nodes` lists, objects and strings, and `numbers` numbers."""

    nodes: int
    numbers: int

    def check(self, nodes: int, commas: int) -> None:
        """Raises TooLarge."""
        if nodes > self.nodes:
            raise TooLarge(
                f"the body has more than {self.nodes} JSON strings, lists and objects; send fewer texts in a request "
                "(max_client_batch_size)"
            )
        if commas > self.nodes + self.numbers:
            raise TooLarge(
                f"the body has more than {self.nodes + self.numbers} JSON values; send fewer token ids in a request "
                "(max_queue_tokens)"
            )


@dataclass(frozen=True)
class _Marks:
    """Commas and brackets outside strings, in order: their positions, int64[n]; their kinds, uint8[n]; and how many
    brackets are open after each, int64[n]."""

    at: np.ndarray
    kinds: np.ndarray
    depths: np.ndarray


def check(raw: bytes | bytearray, bounds: Bounds) -> None:
    """Raises TooLarge for a body with more values than the bounds allow."""
    data = np.frombuffer(raw, np.uint8)
    opened, quotes, commas = (
        sum(int(np.count_nonzero(data == ord(c))) for c in characters) for characters in ("[{", '"', ",")
    )
    # An estimate, for these may stand in strings, too.
    if opened + quotes // 2 > bounds.nodes or commas > bounds.nodes + bounds.numbers:
        for _ in _marks(raw, bounds):
            pass


def read(raw: bytes | bytearray, bounds: Bounds, admit: Callable[[int], None] = lambda size: None) -> Any:
    """The value of a large body. `admit` is called with the number of bytes that its numbers take. Raises TooLarge,
    Malformed, or Invalid for invalid UTF-8."""
    found = list(_marks(raw, bounds))
    at, kinds = (np.concatenate(column) for column in zip(*found, strict=True))
    if not len(at):
        raise Invalid("the body must be a JSON object")
    admit(_NUMBER * int(np.count_nonzero(kinds == _COMMA)))
    depths = np.cumsum((kinds == _OPEN).astype(np.int64) - (kinds == _CLOSE))
    outside = raw[: at[0]] + raw[at[-1] + 1 :]
    if depths[-1] != 0 or (depths[:-1] < 1).any() or outside.strip(b" \t\r\n"):
        raise Malformed("malformed JSON: its brackets do not match, or there is something outside them")
    return _container(raw, _Marks(at, kinds, depths), 0, len(at) - 1, 0)


def _marks(raw: bytes | bytearray, bounds: Bounds) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions and kinds of all marks, chunk by chunk. Raises TooLarge."""
    data = np.frombuffer(raw, np.uint8)
    inside, escaping, opened, ends, commas = False, False, 0, 0, 0
    for start in range(0, len(data), _CHUNK):
        part = data[start : start + _CHUNK]
        quotes, escaping = _quotes(part, escaping)
        in_string = np.logical_xor.accumulate(quotes) ^ inside
        inside = bool(in_string[-1])
        kinds = np.take(_KINDS, part)
        kinds[in_string] = 0
        where = np.flatnonzero(kinds)
        kinds = kinds[where]
        opened += int(np.count_nonzero(kinds == _OPEN))
        ends += int(np.count_nonzero(quotes))  # of strings
        commas += int(np.count_nonzero(kinds == _COMMA))
        bounds.check(opened + ends // 2, commas)
        yield where + start, kinds


def _quotes(part: np.ndarray, escaping: bool) -> tuple[np.ndarray, bool]:
    """bool[n], the quotes that begin or end a string; and whether the first byte of the next chunk is escaped. In a run
    of backslashes an odd number escapes the next byte."""
    quotes = part == _QUOTE
    slashes = np.flatnonzero(part == _BACKSLASH)
    if not len(slashes) or slashes[0] > 0:
        quotes[0] &= not escaping
    if not len(slashes):
        return quotes, False
    last = np.append(np.diff(slashes) > 1, True)
    ends = slashes[last]
    lengths = np.diff(np.flatnonzero(last), prepend=-1)
    lengths[0] += escaping and slashes[0] == 0
    escaped = ends[lengths % 2 == 1] + 1
    carried = bool(len(escaped)) and escaped[-1] == len(part)
    quotes[escaped[:-1] if carried else escaped] = False
    return quotes, carried


def _container(raw: bytes | bytearray, marks: _Marks, first: int, last: int, level: int) -> Any:
    """The list or object from the mark `first` to the mark `last`."""
    at = marks.at
    if at[last] - at[first] <= _PIECE:
        return _parse(raw[at[first] : at[last] + 1], int(at[first]))
    if level == _DEPTH:
        raise Malformed(f"malformed JSON: more than {_DEPTH} lists and objects are nested at byte {at[first]}")
    inner = slice(first + 1, last)
    commas = np.flatnonzero((marks.kinds[inner] == _COMMA) & (marks.depths[inner] == marks.depths[first]))
    ends = np.concatenate([[first], commas + first + 1, [last]])
    made: Any = {} if raw[at[first]] == ord("{") else []
    for start, stop, alone in _groups(ends, at[ends]):
        part = _part(raw, marks, (first, last), (start, stop), level if alone else None)
        if not part and len(ends) > 2:
            raise Malformed(f"malformed JSON: a value is missing at byte {at[stop]}")
        made.update(part) if isinstance(made, dict) else made.extend(part)
    return made


def _groups(ends: np.ndarray, at: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Pairs of value boundaries a piece apart, each with whether there is only one value between them."""
    start = 0
    while start < len(ends) - 1:
        stop = max(start + 1, int(np.searchsorted(at, at[start] + _PIECE, "right")) - 1)
        yield int(ends[start]), int(ends[stop]), stop == start + 1
        start = stop


def _part(
    raw: bytes | bytearray, marks: _Marks, whole: tuple[int, int], span: tuple[int, int], level: int | None
) -> Any:
    """A list or object of the values in `span`, a part of `whole`. A single value is read in pieces itself, at the next
    `level`."""
    at, (start, stop) = marks.at, span
    opening, closing = (raw[at[end] : at[end] + 1] for end in whole)
    begin, end = int(at[start]), int(at[stop])
    if level is None or end - begin <= _PIECE:
        return _parse(opening + raw[begin + 1 : end] + closing, begin)
    if stop > start + 1:
        before, after = raw[begin + 1 : at[start + 1]], raw[at[stop - 1] + 1 : end]
        value = _container(raw, marks, start + 1, stop - 1, level + 1)
    else:
        text = raw[begin + 1 : end]
        key = _KEY.match(text) if opening == b"{" else None
        if key is None and opening == b"{":
            raise Malformed(f"malformed JSON: a value without a name of at most {_AROUND // 2} bytes at byte {begin}")
        before, after = text[: key.end()] if key else b"", b""
        value = _long(text[len(before) :].strip(), begin)
    if len(before) + len(after) > _AROUND:
        raise Malformed(f"malformed JSON: a name, or blanks, of more than {_AROUND // 2} bytes at byte {begin}")
    shell = _parse(opening + before + b" 0 " + after + closing, begin)
    return dict.fromkeys(shell, value) if isinstance(shell, dict) else [value]


def _long(piece: bytes | bytearray, start: int) -> Any:
    """A long value without marks; a string is parsed piece by piece. A cut within an escape or a character gives
    invalid JSON, so the cut moves back until the piece is valid."""
    if piece[:1] != b'"' or piece[-1:] != b'"':
        return _parse(piece, start)
    parts, begin, last = [], 1, len(piece) - 1
    while begin < last:
        part, begin = _beginning(piece, begin, min(begin + _PIECE, last), start)
        parts.append(part)
    return "".join(parts)


def _beginning(piece: bytes | bytearray, begin: int, stop: int, start: int) -> tuple[str, int]:
    """The value from `begin` to `stop` or slightly earlier, and the position of its end."""
    for end in range(stop, max(begin, stop - _LONGEST), -1):
        with suppress(Malformed, Invalid):
            return _parse(b'"' + piece[begin:end] + b'"', start), end
    return _parse(b'"' + piece[begin:stop] + b'"', start), stop


def _parse(piece: bytes | bytearray, start: int = 0) -> Any:
    try:
        return from_json(piece)
    except ValueError as exc:
        try:
            piece.decode()
        except UnicodeDecodeError:
            raise Invalid("the body is not valid UTF-8") from None
        raise Malformed(
            f"malformed JSON: {one_line(exc)}" + (f", in the part that begins at byte {start}" if start else "")
        ) from None
