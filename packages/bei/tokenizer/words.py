"""Texts as words, for a model that reads the names of entities before each text (GLiNER and GLiNER2).

Every word is read alone, as transformers reads texts that are split into words. A long text is read in windows of as
many words as the model was trained for; the labels stand before each.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from bei.checkpoint.gliner_head import Gliner
from bei.errors import Empty, Invalid, SetupError, short
from bei.tokenizer.encoding import Encoding
from bei.tokenizer.reading import Reader
from bei.tokenizer.template import Template

T = TypeVar("T")

_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")
_SENTENCE_ENDS = (".", "!", "?")
_DESCRIBED = "[DESCRIPTION]"
_AT_ONCE = 512  # words that are read between two looks at the limits
_OVERLAP = 4  # the part of a window that the next one has, too
_FOR_LABELS = 2  # the part of a sequence that labels may fill


@dataclass(frozen=True, slots=True)
class WordWindow:
    """A window of text `owner`: the encoding of labels and words. `bounds`: int32[words + 1], where the tokens of each
    word begin in it, and the end of the last. `starts`, `ends`: int32[words], in characters of the text; `first` is the
    number of the text's words before it."""

    encoding: Encoding
    owner: int
    first: int
    bounds: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class WordWindows:
    """The windows of some texts, one at least of each. `labels`: int32[labels], the places of their states in every
    window; in GLiNER2 the schema's own comes before them."""

    windows: list[WordWindow]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Encoding]:
        return (window.encoding for window in self.windows)


@dataclass(frozen=True, slots=True)
class _Words:
    """ids: int32[tokens]; bounds: int32[words + 1]; starts, ends: int32[words]."""

    ids: np.ndarray
    bounds: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class WordReader:
    """Reads texts after labels. Safe from several threads. `max_tokens` counts labels and specials."""

    def __init__(self, gliner: Gliner, reader: Reader, template: Template, max_tokens: int):
        self._gliner, self._reader, self._max_tokens = gliner, reader, max_tokens
        self._template = template if gliner.version == 1 else template.bare()

    def read(
        self,
        texts: Sequence[str],
        labels: Mapping[str, str],
        *,
        truncate: bool,
        check: Callable[[int], None] = lambda tokens: None,
    ) -> WordWindows:
        """`labels` are names and descriptions. Without `truncate` a text that needs several windows is Invalid. `check`
        is called repeatedly with the number of tokens that were read, and may raise. Also raises Empty or
        Untokenizable."""
        prompt, places = self._prompt(labels)
        windows: list[WordWindow] = []
        tokens = 0
        for i, text in enumerate(texts):
            if not text:
                raise Empty("`inputs` cannot be empty", param="inputs", place=i)
            words = self._words(i, text, len(prompt), truncate, check, tokens)
            found = list(self._windows(i, text, words, prompt))
            windows += found
            tokens += sum(len(window.encoding.ids) for window in found)
            check(tokens)
        return WordWindows(windows, places + len(self._template.fixed[0]))

    def _prompt(self, labels: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the labels with the words around them, and int32[labels], the place of each label's state."""
        gliner, most = self._gliner, self._max_tokens // _FOR_LABELS
        before, named = list(gliner.before), list(labels.values() if gliner.version == 1 else labels)
        if gliner.version == 2:
            before[2] += "".join(f" {_DESCRIBED} {name}: {words}" for name, words in labels.items() if words != name)
        parts = [*before, *(part for label in named for part in (gliner.mark, label)), *gliner.after]
        ids, lengths, total = [], [], 0
        for portion in _portions(parts):
            for read in self._ids(portion):
                ids.append(read)
                lengths.append(len(read))
            total = sum(lengths)
            if total + self._template.size > most:
                raise Invalid(
                    f"`labels` may fill at most {most} of the {self._max_tokens} tokens that the model reads at once",
                    param="labels",
                )
        marks = range(len(before), len(before) + 2 * len(named), 2)
        nameless = next((label for at, label in zip(marks, named, strict=True) if not lengths[at + 1]), None)
        if nameless is not None:
            raise Invalid(f"`labels`: {short(nameless)} has no token in the model's vocabulary", param="labels")
        starts, first = np.cumsum([0, *lengths[:-1]]), 1 if gliner.first_of_label else 0
        states = [at + first for at in marks] if gliner.version == 1 else [1, *marks]
        return np.concatenate(ids), starts[states]

    def _words(
        self, i: int, text: str, prompt: int, truncate: bool, check: Callable[[int], None], before: int
    ) -> _Words:
        """The words that have a token."""
        ids: list[np.ndarray] = [np.zeros(0, np.int32)]
        lengths: list[int] = []
        places: list[tuple[int, int]] = []
        total, most = 0, self._max_tokens - self._template.size - prompt
        for portion in _portions(self._divided(text)):
            for (_, start, end), read in zip(portion, self._ids([word for word, _, _ in portion]), strict=True):
                if len(read):
                    ids.append(read)
                    lengths.append(len(read))
                    places.append((start, min(end, len(text))))
                    total += len(read)
            check(before + total)
            if not truncate and (len(lengths) > self._gliner.max_words or total > most):
                raise Invalid(
                    f"`inputs` must have at most {self._gliner.max_words} words and, beside the labels, {most} tokens "
                    "where `truncate` is false",
                    param="inputs",
                    place=i,
                )
        bounds = np.cumsum([0, *lengths]).astype(np.int32)
        starts, ends = np.array(places, np.int32).reshape(-1, 2).T
        return _Words(np.concatenate(ids), bounds, starts, ends)

    def _divided(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each word and its place. GLiNER2 reads small letters, and a period after a text that ends without one."""
        if self._gliner.version == 1:
            yield from ((found[0], *found.span()) for found in _WORD.finditer(text))
            return
        whole = text if text.endswith(_SENTENCE_ENDS) else f"{text}."
        yield from ((found[0].lower(), *found.span()) for found in _second().finditer(whole))

    def _ids(self, words: Sequence[str]) -> list[np.ndarray]:
        return self._reader.ids(words, self._max_tokens + 1)

    def _windows(self, owner: int, text: str, words: _Words, prompt: np.ndarray) -> Iterator[WordWindow]:
        before = len(self._template.fixed[0]) + len(prompt)
        room = self._max_tokens - self._template.size - len(prompt)
        for part in self._parts(words.bounds, room):
            first, last = words.bounds[[part.start, part.stop]]
            body = words.ids[first : min(last, first + room)]  # a word may be longer than a window
            ids, types = self._template.wrap(np.concatenate([prompt, body]))
            here = slice(part.start, part.stop)
            bounds = np.minimum(words.bounds[part.start : part.stop + 1] - first, len(body)) + before
            characters = 0 if part.start else len(text)
            encoding = Encoding(ids, characters, token_types=types, is_truncated=bool(last > first + room))
            yield WordWindow(encoding, owner, part.start, bounds, words.starts[here], words.ends[here])

    def _parts(self, bounds: np.ndarray, room: int) -> Iterator[range]:
        """Ranges of words; an empty one for a text without words."""
        start, count = 0, len(bounds) - 1
        while True:
            fitting = int(np.searchsorted(bounds, bounds[start] + room, "right")) - 1
            stop = min(max(fitting, start + 1), start + self._gliner.max_words, count)
            yield range(start, stop)
            if stop == count:
                return
            start = max(start + 1, stop - self._overlap(stop - start))

    def _overlap(self, words: int) -> int:
        """As many words as a span may have, so that each span lies in a window; at most half of a window."""
        spans = self._gliner.max_width - 1 if self._gliner.span_mode != "token_level" else 0
        return min(max(words // _OVERLAP, spans), words // 2)


@cache
def _second() -> re.Pattern[str]:
    """GLiNER2's words: addresses are whole, and marks belong to letters. An address has at most 256 characters on each
    side of its @, since one without a bound would be looked for at every character of a long text."""
    marks = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M"))
    letter = rf"[\w{marks}\u200c\u200d]"
    address = r"[a-z0-9._%+-]{1,256}@[a-z0-9.-]{1,256}\.[a-z]{2,}"
    pattern = rf"(?:https?://[^\s]+|www\.[^\s]+)|{address}|@[a-z0-9_]+|{letter}+(?:[-_]{letter}+)*|\S"
    return re.compile(pattern, re.IGNORECASE)


def add_marks(library: Library, gliner: Gliner) -> None:
    """The tokens around labels, which the libraries add to a tokenizer that lacks them. Raises SetupError if their ids
    are others than the checkpoint states."""
    if gliner.mark_id is None and any(library.token_to_id(token) is None for token in (gliner.mark, gliner.after[-1])):
        library.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in gliner.added])
    id = library.token_to_id(gliner.mark)
    read = library.encode(gliner.mark, add_special_tokens=False).ids
    if id is None or read != [id] or gliner.mark_id not in (None, id):
        stated = "" if gliner.mark_id is None else f"; class_token_index is {gliner.mark_id}"
        raise SetupError(f"in tokenizer.json {short(gliner.mark)} has id {id}{stated}; save the tokenizer again")


def _portions(items: Iterable[T]) -> Iterator[list[T]]:
    portion: list[T] = []
    for item in items:
        portion.append(item)
        if len(portion) == _AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion
