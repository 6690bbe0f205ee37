"""Texts to tokens; of a long text, only as many as are needed. A long text is read in overlapping parts, which are
joined at a place around which both parts have the same tokens.

The tokens of a part may be wrong only near its ends: a word may continue there, whitespace ends, a prefix is inserted.
So parts are joined away from the ends of both, between characters that no normalizer joins, and where a word begins.
Within a word without such a place, parts can still be joined if a token depends only on a few tokens near it: in BPE
tokens are right if each adjacent pair is, and in Unigram the best paths meet. The next part begins at the beginning of
a token, so that rules that count from there (digits in threes, letters in pairs) count the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Encoding as Read
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE, Unigram

from bei import work
from bei.errors import Untokenizable, library_errors
from bei.tokenizer import limits
from bei.tokenizer.library import unknown_id
from bei.tokenizer.places import as_sent, is_anchor, is_plain
from bei.tokenizer.template import Direction, cut

WHOLE = 1 << 15, 1 << 17  # characters of a text that is read at once: the least, and the most for any number of tokens
PART = 1 << 14, 1 << 16
OVERLAP = 1 << 11, 1 << 15
Wanted = tuple[str, int, Direction]
"""A text, and how many of its first or last tokens are needed."""

UNBROKEN = 1 << 18  # characters without a place to join: reading them takes 100 MB and a second
_SHORT = 1 << 12  # characters; no accepted normalizer makes more of them than are read at once
_A_TOKEN = 8  # characters that are read per token; more are read if tokens are longer
_TEXTS = 128  # texts that the library reads at once
_AT_ONCE = 1 << 14, 1 << 20  # characters of those texts, by their growth; the library takes 300 to 500 bytes for each
_NORMALIZED = 1 << 21
COUNTED = 1 << 20  # characters of a text that may be read to its end
_NO_PLACE = "have no place at which words part, and so long a text cannot be read"
_STRIPS = (b'"Strip"', rb"\\A")  # rules for the beginning of a text, which a part has elsewhere
_LONGEST = 64  # characters of a piece of Unigram
_TRIES = 256  # tokens among which a place is searched


@dataclass(frozen=True, slots=True)
class Tokens:
    """ids: int32[n]; starts and ends: int32[n], in characters of the text; words: int32[n], one number a word."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.starts[part], self.ends[part], self.words[part])

    def begins_word(self, i: int) -> bool:
        return bool(self.words[i] != self.words[i - 1])

    def divides(self, i: int) -> bool:
        """Whether no character belongs both to the tokens before `i` and to those from `i` on."""
        return bool(self.starts[i] >= self.ends[i - 1])


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens of the characters from `start` to `stop`."""

    start: int
    stop: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class _Joined:
    """A join: the tokens of a part before `stop` are followed by those of `part` from `begin` on."""

    stop: int
    part: _Part
    begin: int


class Reader:
    """Reads texts, without special tokens around them. Safe from several threads. Raises Untokenizable."""

    def __init__(self, library: Library, *, lowercase: bool, vocab_size: int):
        self._library = library
        self._lowercase = lowercase
        self._vocab_size = vocab_size
        self._unknown = unknown_id(library)
        known = library.get_vocab(with_added_tokens=True)
        self._may_leave_vocabulary = max(known.values()) >= vocab_size
        self._longest = max(map(len, known))
        self._overlap = _bounded(8 * self._longest, OVERLAP)
        self._growth = limits.check(library)
        rules = b"" if library.normalizer is None else library.normalizer.__getstate__()
        self._strips = any(strip in rules for strip in _STRIPS)

    def ids(self, texts: Sequence[str], most: int, direction: Direction = "right") -> list[np.ndarray]:
        """int32[tokens] of each text: all tokens of a short text; of a long one the first `most`, or with direction
        `left` the last."""
        if len(texts) == 1 and len(texts[0]) <= _SHORT:  # the most common request
            return self._read_whole(texts)
        whole = _bounded(2 * _A_TOKEN * most, WHOLE)
        is_short = [len(text) <= min(whole, self._most(text)) for text in texts]
        short = self._short([text for text, fits in zip(texts, is_short, strict=True) if fits])
        long = self._first if direction == "right" else self._last
        return [
            next(short) if fits else cut(long(text, most), most, direction)
            for text, fits in zip(texts, is_short, strict=True)
        ]

    def each(self, texts: Sequence[str], most: int | None = None) -> Iterator[Iterable[Tokens]]:
        """The tokens of each text: all of them, or at least the first `most` of a long text."""
        is_short = [len(text) <= min(WHOLE[0], self._most(text)) for text in texts]
        short = self._short_tokens([text for text, fits in zip(texts, is_short, strict=True) if fits])
        return ((next(short),) if fits else self.tokens(text, most) for text, fits in zip(texts, is_short, strict=True))

    def tokens(self, text: str, most: int | None = None) -> Iterator[Tokens]:
        """The tokens of a text, in portions: all of them, or at least the first `most`."""
        given = 0
        for tokens in self._settled(text, most, PART[1] if most is None else _bounded(_A_TOKEN * most, PART)):
            yield tokens
            given += len(tokens)
            if most is not None and given >= most:
                return

    def _read_whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(one.ids, np.int32) for one in self._read(self._lowered(list(texts)), fast=True)]

    def _short(self, texts: list[str]) -> Iterator[np.ndarray]:
        for batch in self._batches(texts):
            yield from self._read_whole(batch)

    def _short_tokens(self, texts: list[str]) -> Iterator[Tokens]:
        for batch in self._batches(texts):
            lowered = self._lowered(batch)
            for sent, given, read in zip(batch, lowered, self._read(lowered), strict=True):
                yield _tokens(sent, given, read)

    def _most(self, text: str) -> int:
        """How many characters of a text are read at once, so that the normalized text is bounded."""
        return _bounded(_NORMALIZED // self._growth[not text.isascii()], _AT_ONCE)

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        share = 0.0
        for text in texts:
            part = len(text) / self._most(text)
            if batch and (len(batch) == _TEXTS or share + part > 1):
                yield batch
                batch, share = [], 0.0
            batch.append(text)
            share += part
        if batch:
            yield batch

    def _lowered(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lowercase else texts

    def _first(self, text: str, most: int) -> np.ndarray:
        return joined_tokens(list(self.tokens(text, most))).ids

    def _last(self, text: str, most: int) -> np.ndarray:
        """The last tokens: read from the end, if two parts agree after a place at which a word begins in any context;
        else from the beginning."""
        size, length = min(_bounded(_A_TOKEN * most, PART), self._most(text)), len(text)
        while size <= min(UNBROKEN, self._most(text)) and size + 2 * self._overlap < length:
            part = self._part(text, length - size, length)
            before = self._part(text, part.start - self._overlap - 1, part.start + self._overlap)
            place = self._place(text, before, part, anchored=True)
            if place is not None and len(part.tokens) - place[1] >= most:
                return part.tokens.ids
            size *= 4
        if length > COUNTED:
            raise Untokenizable(f"tokenizer error: {size // 4} characters {_NO_PLACE} from its end")
        found = np.zeros(0, np.int32)
        for tokens in self.tokens(text):
            found = np.concatenate([found, tokens.ids])[-most:]
        return found

    def _settled(self, text: str, most: int | None, size: int) -> Iterator[Tokens]:
        """The tokens of the parts, in order. After `most` tokens the next part is read only to be sure that the tokens
        before it do not change."""
        size = min(size, self._most(text))
        part, begin, given = self._part(text, 0, min(size, len(text))), 0, 0
        while part.stop < len(text):
            known = given + len(part.tokens) - begin
            ahead = self._overlap if most is not None and known > most + self._overlap else size
            joined = self._join(text, part, begin, ahead) or self._skip(text, part, ahead)
            if joined is None:
                part = self._longer(text, part)
                continue
            yield part.tokens[begin : joined.stop]
            given += max(0, joined.stop - begin)
            part, begin = joined.part, joined.begin
        yield part.tokens[begin:]

    def _join(self, text: str, part: _Part, begin: int, ahead: int) -> _Joined | None:
        overlap = self._overlap
        while (start := _beginning(text, part, begin, part.stop - overlap)) is not None:
            after = self._part(text, start, min(part.stop + ahead, len(text)))
            place = self._place(text, part, after)
            if place is not None:
                return _Joined(place[0], after, place[1])
            overlap = 4 * (part.stop - start)
        return None

    def _place(self, text: str, a: _Part, b: _Part, *, anchored: bool = False) -> tuple[int, int] | None:
        """The place at which `b` continues `a`: the index of one token in both. All tokens that both have there are
        equal, except near their ends."""
        margin = (a.stop - b.start) // 4
        in_a, in_b = (_within(part.tokens, b.start + margin, a.stop - margin) for part in (a, b))
        if len(in_a) < 2 or not _equal(a.tokens[in_a.start : in_a.stop], b.tokens[in_b.start : in_b.stop]):
            return None
        for i in _from_the_middle(in_a):
            if a.tokens.divides(i) and self._may_join(text, a.tokens, i, anchored):
                return i, i - in_a.start + in_b.start
        return None

    def _may_join(self, text: str, tokens: Tokens, i: int, anchored: bool) -> bool:
        at = int(tokens.ends[i - 1])
        before, after = text[at - 1], text[at]
        if anchored:
            return tokens.begins_word(i) and is_anchor(before, after)
        return is_plain(before, after) and (tokens.begins_word(i) or self._is_settled(text, at))

    def _is_settled(self, text: str, at: int) -> bool:
        """Whether a token ends at `at` in any context. For BPE it is enough that two parts agree; for Unigram the best
        paths must meet there for every start and end within the length of one piece."""
        if isinstance(self._library.model, BPE):
            return True
        if not isinstance(self._library.model, Unigram) or self._longest > _LONGEST:
            return False
        start, stop = max(0, at - 8 * self._longest), min(at + 8 * self._longest, len(text))
        shifts = range(1, self._longest)
        shifted = [(0, 0), *((i, 0) for i in shifts), *((0, i) for i in shifts), *((i, i) for i in shifts)]
        return all(_divided(self._part(text, start + i, stop - j).tokens, at) for i, j in shifted)

    def _skip(self, text: str, part: _Part, ahead: int) -> _Joined | None:
        """Skip repetitions of text that makes no tokens, or of one unknown token, however many there are."""
        tokens, start = part.tokens, part.stop - min(self._overlap, (part.stop - part.start) // 4)
        stop = _repeated(text, start, part.stop)
        last = int(tokens.ends[-1]) if len(tokens) else part.start
        if stop == part.stop or start < last < part.stop:
            return None
        after = self._part(text, stop - (part.stop - start), min(stop + ahead, len(text)))
        if last <= start:
            separated = not self._strips and any(map(str.isspace, text[last:start]))
            return _Joined(len(tokens), after, 0) if separated else None
        halves = (self._part(text, *half).tokens.ids.tolist() for half in ((part.start, start), (start, part.stop)))
        if any(half[-1:] != [self._unknown] for half in halves) or tokens.starts[-1] > start - self._overlap:
            return None
        begin = int(np.argmax(after.tokens.ids[:2] == self._unknown))  # a prefix may stand before it
        return _Joined(len(tokens) - 1, _begun(after, begin, int(tokens.starts[-1])), begin)

    def _longer(self, text: str, part: _Part) -> _Part:
        """The part, extended by the text that follows. Raises Untokenizable."""
        length = part.stop - part.start
        most = min(UNBROKEN, self._most(text))
        if length >= most:
            raise Untokenizable(f"tokenizer error: {most} characters {_NO_PLACE}")
        longer = self._part(text, part.start, min(part.start + min(4 * length, most), len(text)))
        return _begun(longer, 0, int(part.tokens.starts[0])) if len(part.tokens) else longer

    def _part(self, text: str, start: int, stop: int) -> _Part:
        sent = text[start:stop]
        (lowered,) = self._lowered([sent])
        (read,) = self._read([lowered])
        return _Part(start, stop, _tokens(sent, lowered, read, start))

    def _read(self, texts: list[str], *, fast: bool = False) -> list[Read]:
        """With `fast` there are no offsets."""
        work.check()
        read = (
            self._library.encode_batch_fast if fast else self._library.encode_batch
        )  # `encode` does not release the GIL
        with library_errors("tokenizer error", Untokenizable):  # a lone surrogate, or a word that it cannot encode
            found = read(texts, add_special_tokens=False)
        if self._may_leave_vocabulary and any(max(one.ids, default=0) >= self._vocab_size for one in found):
            raise Untokenizable("tokenizer error: tokenizer.json has tokens for which the model has no embedding")
        return found


def joined_tokens(parts: Sequence[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, name) for part in parts] for name in ("ids", "starts", "ends", "words"))
    return Tokens(*map(np.concatenate, columns))


def _tokens(sent: str, lowered: str, read: Read, start: int = 0) -> Tokens:
    """The tokens of a text that begins at `start` of a longer one."""
    starts, ends = as_sent(sent, lowered, np.array(read.offsets, np.int32).reshape(-1, 2).T)
    words = np.array([-1 if word is None else word for word in read.word_ids], np.int32)
    return Tokens(np.array(read.ids, np.int32), starts + start, ends + start, words)


def _bounded(characters: int, bounds: tuple[int, int]) -> int:
    return min(max(characters, bounds[0]), bounds[1])


def _begun(part: _Part, i: int, start: int) -> _Part:
    """The part, with token `i` beginning at `start`, before the part."""
    starts = part.tokens.starts.copy()
    starts[i] = min(starts[i], start)
    return replace(part, tokens=replace(part.tokens, starts=starts))


def _repeated(text: str, start: int, stop: int) -> int:
    """The end of the repetitions of the text from `start` to `stop`."""
    block = text[start:stop]
    while text.startswith(block, stop):
        stop += len(block)
    return stop


def _divided(tokens: Tokens, at: int) -> bool:
    i = int(np.searchsorted(tokens.ends, at, "right"))
    return 0 < i < len(tokens) and tokens.ends[i - 1] == at and tokens.divides(i)


def _beginning(text: str, part: _Part, begin: int, before: int) -> int | None:
    """A place at which the next part may begin: the beginning of a token, preferably that of a word."""
    tokens, within = part.tokens, None
    last = int(np.searchsorted(tokens.ends, before, "right"))
    for i in range(min(last, len(tokens) - 1), max(begin, last - _TRIES), -1):
        place = int(tokens.ends[i - 1])
        if not part.start < place <= before or not tokens.divides(i) or not is_plain(*text[place - 1 : place + 1]):
            continue
        if tokens.begins_word(i):
            return place
        within = within or place
    return within


def _within(tokens: Tokens, start: int, stop: int) -> range:
    """The tokens between two places in the text."""
    inside = np.flatnonzero((tokens.starts >= start) & (tokens.ends <= stop))
    return range(int(inside[0]), int(inside[-1]) + 1) if len(inside) else range(0)


def _equal(a: Tokens, b: Tokens) -> bool:
    return all(
        map(
            np.array_equal,
            (a.ids, a.starts, a.ends, np.diff(a.words) != 0),
            (b.ids, b.starts, b.ends, np.diff(b.words) != 0),
        )
    )


def _from_the_middle(tokens: range) -> Iterator[int]:
    """All but the first, those in the middle first."""
    middle = (tokens.start + tokens.stop) // 2
    return iter(sorted(tokens[1:], key=lambda i: abs(i - middle))[:_TRIES])
