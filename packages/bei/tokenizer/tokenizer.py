"""Texts, pairs or token ids to encodings: prompts, specials, truncation, windows. Never called on the event loop."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
from tokenizers import Encoding as Read

from bei import work
from bei.checkpoint.load import Checkpoint
from bei.errors import Empty, Invalid, SetupError, Untokenizable, short
from bei.tokenizer.encoding import Encoding, Input, Role, Token, Windows
from bei.tokenizer.library import (
    check_specials,
    ensure,
    ids_of,
    keep_whole,
    library_errors,
    load,
    mask_id,
    vocabulary,
)
from bei.tokenizer.template import Direction, cut, inner, learn, longest_first, windows

_PIECE = 128  # texts that the library reads at once: what it makes of each is large, a hundred bytes a token


@dataclass(frozen=True)
class Asked:
    """A pair in the words of its model's template; only `body` is cut."""

    characters: int
    prefix: tuple[str, ...]
    body: tuple[str, ...]
    suffix: tuple[str, ...]

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        return self.prefix, self.body, self.suffix


class Tokenizer:
    """Safe to call from several threads. `max_tokens` counts specials and the prompt.

    A tagger's has its `vocabulary`, token by id, and the id of its `unknown` token; BGE-M3's the ids of `unused` ones.
    """

    def __init__(self, checkpoint: Checkpoint, default_prompt: str | None = None):
        with library_errors(f"{checkpoint.tokenizer_file} is not a tokenizer", SetupError):
            self._set_up(checkpoint)
        self._prompts = checkpoint.prompts.texts
        self._prompts_go_before_pairs = checkpoint.prompts.before_pairs
        self._default_prompt = default_prompt
        self._max_tokens = checkpoint.max_tokens
        expanded = self._late.expansion if self._late else 0
        if self._max_tokens <= max(self._single.size, self._pair.size) or self._max_tokens < expanded:
            raise SetupError(f"{checkpoint.max_tokens} tokens leave no room for a text beside the special tokens")

    def _set_up(self, checkpoint: Checkpoint) -> None:
        self._library = load(str(checkpoint.tokenizer_file), checkpoint.casing)
        ensure(self._library, checkpoint.added_specials)
        self._template = checkpoint.pair_template
        self._late = checkpoint.late_interaction
        if self._late is not None:
            keep_whole(self._library, self._late.markers.values())
            self._mask, self._skipped = mask_id(self._library, self._late), ids_of(self._library, self._late.skiplist)
        types = checkpoint.token_types
        self._single, self._pair = learn(self._library, 1, types=types), learn(self._library, 2, types=types)
        self._vocab_size = checkpoint.spec.vocab_size
        known = self._library.get_vocab(with_added_tokens=True).values()
        self._may_leave_vocabulary = max(known) >= self._vocab_size
        check_specials((self._single, self._pair), self._mask if self._late else 0, checkpoint.spec)
        self._lowercase = checkpoint.lowercase
        self.unused = set(ids_of(self._library, checkpoint.m3.unused if checkpoint.m3 else ()))
        if checkpoint.task == "entities":
            self.vocabulary = vocabulary(self._library, self._vocab_size)
            self.unknown = self._library.token_to_id(checkpoint.unknown_token or "")
            self._token_lengths = np.array([len(token) for token in self.vocabulary])

    def prompt(self, name: str | None) -> str | None:
        """The text of a prompt, of the default one without a name. Raises Invalid for a name that the model lacks."""
        if name is None:
            return self._default_prompt
        if name not in self._prompts:
            # tei-client reads the names from this message.
            known = ", ".join(sorted(self._prompts))
            raise Invalid(
                f"`prompt_name` {short(name)} was not found in the model's prompts. Available prompts: [{known}]",
                param="prompt_name",
            )
        return self._prompts[name]

    def role_prompt(self, role: Role) -> str | None:
        """The prompt that a ColBERT model puts before a query or a document."""
        return self._prompts.get(role)

    def narrowed(self, max_tokens: int | None, add_special_tokens: bool) -> Self:
        """This tokenizer, whose `encode` cuts at `max_tokens` where that is sooner, or puts no special tokens around a
        text. Raises Invalid where no text fits into so few."""
        other = copy(self)
        if not add_special_tokens:
            other._single, other._pair = self._single.bare(), self._pair.bare()
        if max_tokens is not None:
            other._max_tokens = min(max_tokens, self._max_tokens)
            room = max(other._single.size, other._pair.size)
            if other._max_tokens <= room:
                raise Invalid(
                    f"`truncate_prompt_tokens` {max_tokens} leaves no room for a text beside {room} special tokens",
                    param="truncate_prompt_tokens",
                )
        return other

    def around(self, prompt: str | None) -> int:
        """Tokens that stand around a text beside its own: special ones and the prompt's."""
        return self._single.size + (len(self._read([prompt])[prompt]) if prompt else 0)

    def encode(
        self,
        inputs: Sequence[Input],
        *,
        truncate: bool,
        direction: Direction = "right",
        prompt: str | None = None,
        role: Role | None = None,
        max_second_tokens: int | None = None,
        instruction: str | None = None,
    ) -> list[Encoding]:
        """One encoding an input; a text that occurs again is read once. A prompt goes before texts, and before
        the first of a pair where the model was trained so; `role` is a ColBERT model's; `max_second_tokens` cuts the
        second of each pair, whatever `truncate` says.
        `instruction` is for the pairs of a model that has a template for them.

        Raises Empty, Invalid or Untokenizable naming the input by its place.
        """
        if self._template is not None:
            inputs = [self._asked(item, instruction, max_second_tokens) for item in inputs]
        prompt = prompt or ""
        prompts, before_pair = [prompt] if prompt else [], prompt if self._prompts_go_before_pairs else ""
        bodies = self._read([*prompts, *(text for item in inputs for text in _texts(item, prompt, before_pair))])
        prompt_tokens = len(self._single.fixed[0]) + len(bodies[prompt]) if prompt else 0
        encodings = []
        for i, item in enumerate(inputs):
            if not any(item) if isinstance(item, tuple) else not item:
                raise Empty(f"`inputs` cannot be empty (input {i})")
            if isinstance(item, Asked):
                encodings.append(self._finish_asked(i, item, bodies, truncate, direction))
                continue
            if isinstance(item, tuple):
                first, second = bodies[before_pair + item[0]], bodies[item[1]][:max_second_tokens]
                encodings.append(self._finish_pair(i, item, first, second, truncate, direction))
                continue
            if isinstance(item, list):
                self._check_ids(i, item)
            body = bodies[prompt + item] if isinstance(item, str) else np.array(item, np.int32)
            limit = self._limit(role)
            self._check_length(i, len(body) + self._single.size, limit, truncate)
            ids, types = self._single.wrap(cut(body, limit - self._single.size, direction))
            text = isinstance(item, str)
            encoding = Encoding(ids, len(item) if text else 0, prompt_tokens if text else 0, types)
            encodings.append(encoding if role is None else self._as_role(encoding, role))
        return encodings

    def windows(self, texts: Sequence[str], *, truncate: bool) -> Windows:
        """Each text in as many windows as it needs, neighbours sharing a quarter; without `truncate` a text that needs
        several is Invalid. Raises Empty or Untokenizable, too."""
        encodings, owners, columns = [], [], []
        for i, (text, read) in enumerate(zip(texts, self._encode(list(texts)), strict=True)):
            if not text:
                raise Empty(f"`inputs` cannot be empty (input {i})")
            self._check_length(i, len(read.ids) + self._single.size, self._max_tokens, truncate)
            for encoding, of_window in self._windows(text, read):
                encodings.append(encoding)
                owners.append(i)
                columns.append(of_window)
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        ids, starts, ends, special, continues, own = np.concatenate(columns, axis=1)
        flags = (special.astype(bool), continues.astype(bool), own.astype(bool))
        return Windows(encodings, np.array(owners), lengths, ids, starts, ends, *flags)

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool, prompt: str | None = None
    ) -> list[list[Token]]:
        """The tokens of each text, with where each stands in prompt + text."""
        full = [(prompt or "") + text for text in texts]
        encodings = self._encode(full, add_special_tokens=add_special_tokens)
        return [_tokens(text, encoding) for text, encoding in zip(full, encodings, strict=True)]

    def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool) -> list[str]:
        for i, item in enumerate(ids):
            self._check_ids(i, item)
        with library_errors("tokenizer error", Untokenizable):
            return self._library.decode_batch(list(ids), skip_special_tokens=skip_special_tokens)

    def _read(self, texts: list[str]) -> dict[str, np.ndarray]:
        """int32[tokens], without specials, of each distinct text."""
        distinct = list(dict.fromkeys(texts))
        read = self._encode(distinct, fast=True)
        return {text: np.array(one.ids, np.int32) for text, one in zip(distinct, read, strict=True)}

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False, fast: bool = False) -> Iterator[Read]:
        """`fast` leaves offsets out."""
        texts = [text.lower() for text in texts] if self._lowercase else texts
        encode = self._library.encode_batch_fast if fast else self._library.encode_batch
        for start in range(0, len(texts), _PIECE):
            work.check()
            with library_errors("tokenizer error", Untokenizable):  # a lone surrogate, a word it cannot express
                read = encode(texts[start : start + _PIECE], add_special_tokens=add_special_tokens)
            if self._may_leave_vocabulary and any(max(one.ids, default=0) >= self._vocab_size for one in read):
                raise Untokenizable("tokenizer error: tokenizer.json has tokens for which the model has no embedding")
            yield from read

    def _finish_pair(
        self,
        index: int,
        item: tuple[str, str],
        first: np.ndarray,
        second: np.ndarray,
        truncate: bool,
        direction: Direction,
    ) -> Encoding:
        self._check_length(index, len(first) + len(second) + self._pair.size, self._max_tokens, truncate)
        lengths = longest_first(len(first), len(second), self._max_tokens - self._pair.size)
        bodies = (cut(body, length, direction) for body, length in zip((first, second), lengths, strict=True))
        ids, types = self._pair.wrap(*bodies)
        return Encoding(ids, len(item[0]) + len(item[1]), types=types)

    def _asked(self, item: Input, instruction: str | None, max_second_tokens: int | None) -> "Input | Asked":
        """A pair as its template has it; what is no pair as it is."""
        if not isinstance(item, tuple) or not any(item):
            return item
        query, document = item
        if max_second_tokens is not None:
            (read,) = self._encode([document])
            document = document[: read.offsets[:max_second_tokens][-1][1]] if read.ids else document
        return Asked(len(query) + len(item[1]), *self._template.pieces(query, document, instruction))

    def _finish_asked(
        self, index: int, item: "Asked", bodies: dict[str, np.ndarray], truncate: bool, direction: Direction
    ) -> Encoding:
        nothing = np.zeros(0, np.int32)
        prefix, body, suffix = (np.concatenate([nothing, *(bodies[of] for of in part)]) for part in item.parts)
        fixed = len(prefix) + len(suffix)
        self._check_length(index, len(body) + fixed, self._max_tokens, truncate)
        ids = np.concatenate([prefix, cut(body, self._max_tokens - fixed, direction), suffix])
        return Encoding(ids, item.characters)

    def _limit(self, role: Role | None) -> int:
        if self._late is None or role is None:
            return self._max_tokens
        limit = self._late.query_tokens if role == "query" else self._late.document_tokens
        return min(limit or self._max_tokens, self._max_tokens)

    def _as_role(self, encoding: Encoding, role: Role) -> Encoding:
        """A query is filled up with the mask token; tokens of the skiplist are not compared."""
        late, ids, attended = self._late, encoding.ids, None
        scored = np.ones(len(ids), bool)
        if role == "document" or late.skip_queries:
            scored = ~np.isin(ids, self._skipped)
        if role == "query" and len(ids) < late.expansion:
            attended = None if late.attend else len(ids)
            ids = np.append(ids, np.full(late.expansion - len(ids), self._mask, np.int32))
            scored = np.append(scored, np.ones(len(ids) - len(scored), bool))
        return Encoding(ids, encoding.characters, encoding.prompt_tokens, attended=attended, scored=scored)

    def _windows(self, text: str, read: Read) -> Iterator[tuple[Encoding, np.ndarray]]:
        """Each window, and int64[6, tokens]: its ids, starts, ends, and whether special, continuing and inner."""
        offsets, read_ids = np.array(read.offsets, np.int64).reshape(-1, 2).T, np.array(read.ids, np.int32)
        continues = self._continues(text, read_ids, *offsets)
        before, after = len(self._single.fixed[0]), len(self._single.fixed[1])
        room = self._max_tokens - self._single.size
        parts = windows(len(read_ids), room, overlap=room // 4)
        for part, own in zip(parts, inner(parts), strict=True):
            here, body = slice(part.start, part.stop), slice(before, before + len(part))
            ids, types = self._single.wrap(read_ids[here])
            columns = np.zeros((6, len(ids)), np.int64)
            columns[0], columns[3] = ids, 1
            columns[1:3, body], columns[3, body], columns[4, body] = offsets[:, here], 0, continues[here]
            start = own.start - part.start + (before if part.start else 0)
            stop = own.stop - part.start + before + (after if part.stop == len(read_ids) else 0)
            columns[5, start:stop] = 1
            yield Encoding(ids, 0 if part.start else len(text), types=types), columns

    def _continues(self, text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """bool[n]: as transformers' TokenClassificationPipeline.gather_pre_entities has it."""
        if getattr(self._library.model, "continuing_subword_prefix", None):
            found = self._token_lengths[ids] != ends - starts
        else:
            blank = np.frombuffer((text + "\0").encode("utf-32-le", "surrogatepass"), np.uint32) == ord(" ")
            found = (starts > 0) & ~blank[starts - 1] & ~blank[starts]
        return found if self.unknown is None else found & (ids != self.unknown)

    def _check_length(self, index: int, tokens: int, limit: int, truncate: bool) -> None:
        if tokens > limit and not truncate:
            raise Invalid(f"`inputs` must have less than {limit} tokens. Given: {tokens} (input {index})")

    def _check_ids(self, index: int, ids: list[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise Invalid(f"token id {wrong} is outside the vocabulary of {self._vocab_size} (input {index})")


def _texts(item: "Input | Asked", prompt: str, before_pair: str) -> tuple[str, ...]:
    """What there is to read of an input."""
    match item:
        case str():
            return (prompt + item,)
        case Asked():
            return tuple(piece for part in item.parts for piece in part)
        case tuple():
            return before_pair + item[0], item[1]
        case _:
            return ()


def _tokens(text: str, encoding: Read) -> list[Token]:
    at = _byte_offsets(text)
    return [
        Token(id, token, True, None, None) if special else Token(id, text[start:stop], False, at[start], at[stop])
        for id, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]


def _byte_offsets(text: str) -> list[int]:
    """Where each character starts in UTF-8, and where the text ends."""
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + len(character.encode("utf-8", "surrogatepass")))
    return offsets
