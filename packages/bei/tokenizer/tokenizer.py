"""Texts, pairs or token ids to encodings: prompts, specials, truncation, windows. Never called on the event loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np

from bei.checkpoint.colbert import LateInteraction
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.reranking import PairTemplate
from bei.errors import Empty, Invalid, SetupError, Untokenizable, library_errors, short
from bei.tokenizer import limits
from bei.tokenizer.chunks import of_spans, of_texts
from bei.tokenizer.encoding import Chunked, Encoding, Input, Role, Token, Windows
from bei.tokenizer.how import How
from bei.tokenizer.library import (
    check_specials,
    ends,
    ids_of,
    keep_whole,
    load,
    mask_id,
    unknown_id,
    vocabulary,
)
from bei.tokenizer.lists import HowLists, ListReader, Lists
from bei.tokenizer.pairs import RenderedPair
from bei.tokenizer.reading import COUNTED, WHOLE, Reader, Tokens, Wanted, joined_tokens
from bei.tokenizer.template import Direction, cut, learn, longest_first
from bei.tokenizer.tokens import TextTokens
from bei.tokenizer.windows import checked, joined, windows_of
from bei.tokenizer.words import WordReader, add_marks


class Tokenizer:
    """Safe to call from several threads. `max_tokens` counts specials and the prompt.

    A tagger's tokenizer has its `vocabulary`, token by id, and the id of its `unknown` token; BGE-M3's has `unused`
    ids; that of a GLiNER reads `words`.
    """

    def __init__(self, checkpoint: Checkpoint, default_prompt: str | None = None):
        with library_errors(f"{checkpoint.tokenizer_file} is not a tokenizer", SetupError):
            self._set_up(checkpoint)
        self._prompts = checkpoint.prompts.texts
        self._prompts_go_before_pairs = checkpoint.prompts.before_pairs
        self._default_prompt = default_prompt
        self._max_tokens = checkpoint.max_tokens
        self._requested_tokens: int | None = None
        expanded = self._late.expansion if self._late else 0
        if self._max_tokens <= max(self._single.size, self._pair.size) or self._max_tokens < expanded:
            raise SetupError(f"{checkpoint.max_tokens} tokens leave no room for a text beside the special tokens")

    def _set_up(self, checkpoint: Checkpoint) -> None:
        self._library = load(str(checkpoint.tokenizer_file), checkpoint.casing)
        if checkpoint.gliner is not None:
            add_marks(self._library, checkpoint.gliner)
        self._template = checkpoint.pair_template
        self._late = checkpoint.late_interaction
        if self._late is not None:
            keep_whole(self._library, tuple(self._late.markers.values()))
            self._mask, self._skipped = mask_id(self._library, self._late), ids_of(self._library, self._late.skiplist)
        types = checkpoint.token_types
        around = ends(self._library, checkpoint.added_specials)
        self._single, self._pair = (learn(self._library, texts, types=types).between(*around) for texts in (1, 2))
        if checkpoint.reading != "with specials":
            self._single, self._pair = self._single.bare(), self._pair.bare()
        self._left_out = unknown_id(self._library) if checkpoint.reading == "known" else None
        self._vocab_size = checkpoint.spec.vocab_size
        self._reader = Reader(self._library, lowercase=checkpoint.lowercase, vocab_size=self._vocab_size)
        if checkpoint.gliner is not None:
            self.words = WordReader(checkpoint.gliner, self._reader, self._single, checkpoint.max_tokens)
        if checkpoint.list_template is not None:
            self._lists = ListReader(checkpoint.list_template, self._library, self._reader)
        check_specials((self._single, self._pair), self._mask if self._late else 0, checkpoint.spec)
        self.unused = set(ids_of(self._library, checkpoint.m3.unused if checkpoint.m3 else ()))
        if checkpoint.task == "entities":
            self.vocabulary = vocabulary(self._library, self._vocab_size)
            stated = checkpoint.unknown_token
            self.unknown = self._library.token_to_id(stated) if stated else unknown_id(self._library)

    def prompt(self, name: str | None) -> str | None:
        """The text of a prompt; of the default prompt if no name is given. Raises Invalid for an unknown name."""
        if name is None:
            return self._default_prompt
        if name not in self._prompts:
            # tei-client parses the names in this message.
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
        """A copy whose `encode` cuts at `max_tokens`, if that is less, or adds no special tokens to a text."""
        other = copy(self)
        if not add_special_tokens:
            other._single, other._pair = self._single.bare(), self._pair.bare()
        if max_tokens is not None and max_tokens < self._max_tokens:
            other._max_tokens = other._requested_tokens = max_tokens
        return other

    def around(self, prompt: str | None) -> int:
        """The number of tokens around a text: special ones and the prompt's."""
        return self._single.size + (len(self._reader.ids([prompt], self._max_tokens + 1)[0]) if prompt else 0)

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
        """One encoding per input; a repeated text is read once. A prompt goes before texts, and before the first of a
        pair if the model was trained so. `role` is for a ColBERT model. `max_second_tokens` cuts the second text of
        each pair, whatever `truncate` is. `instruction` is for the pairs of a model that has a template for them.

        Raises Empty or Invalid, naming the input by its place, or Untokenizable.
        """
        items: Sequence[Input | RenderedPair] = inputs
        if self._template is not None:
            items = [self._rendered(self._template, item, instruction, max_second_tokens) for item in inputs]
        prompt = prompt or ""
        before_pairs = prompt if self._prompts_go_before_pairs else ""
        how = How(truncate, direction, prompt, before_pairs, role, self._max_tokens + 1, max_second_tokens)
        prompts = [how.of(prompt)] if prompt else []
        bodies = self._read([*prompts, *(text for item in items for text in how.wanted(item))])
        encodings = []
        for i, item in enumerate(items):
            if not any(item) if isinstance(item, tuple) else not item:
                raise Empty("`inputs` cannot be empty", param="inputs", place=i)
            encoding = self._encoded(i, item, bodies, how)
            if not len(encoding.ids):
                raise Empty("`inputs` has a text without a token", param="inputs", place=i)
            encodings.append(encoding)
        return encodings

    def lists(
        self,
        query: str,
        documents: Sequence[str],
        *,
        truncate: bool,
        direction: Direction = "right",
        instruction: str | None = None,
        max_document_tokens: int | None = None,
    ) -> Lists:
        """The prompts in which a model ranks documents together. Raises Empty, Invalid or Untokenizable."""
        limits = max_document_tokens, self._max_tokens, self._requested_tokens is not None
        return self._lists.read(query, documents, HowLists(truncate, direction, instruction, *limits, self._single))

    def windows(
        self, texts: Sequence[str], *, truncate: bool, check: Callable[[int], None] = lambda tokens: None
    ) -> Windows:
        """Each text in as many windows as it needs; adjacent windows overlap by a quarter. Without `truncate` a text
        that needs several is Invalid. `check` is called repeatedly with the number of tokens read, and may raise. Also
        raises Empty or Untokenizable."""
        found, before = [], 0
        read = self._reader.each(texts, None if truncate else self._max_tokens + 1)
        for i, (text, parts) in enumerate(zip(texts, read, strict=True)):
            if not text:
                raise Empty("`inputs` cannot be empty", param="inputs", place=i)
            parts = checked(parts, before, check)
            before += sum(map(len, parts))
            tokens, continues = joined_tokens(parts), np.concatenate([self._continues(text, part) for part in parts])
            if not len(tokens) + self._single.size:
                raise Empty("`inputs` has a text without a token", param="inputs", place=i)
            counted = len(text) <= WHOLE[0]
            self._check_length(i, len(tokens) + self._single.size, self._max_tokens, truncate, counted=counted)
            found.append(list(windows_of(text, tokens, continues, self._single, self._max_tokens)))
        return joined(found)

    def chunked(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int]] | None = None, prompt: str | None = None
    ) -> Chunked:
        """Texts read as one, each a chunk; or the spans of one text, in characters. Nothing is cut. Raises Empty,
        Invalid or Untokenizable."""
        before, most = self._reader.ids([prompt or ""], self._max_tokens + 1), self._max_tokens + 1
        parts, places = of_spans(self._reader, texts[0], spans, most) if spans else of_texts(self._reader, texts, most)
        around = self._single.size + len(before[0])
        tokens = sum(map(len, parts))
        if tokens + around > self._max_tokens:
            found = f"the texts have {tokens + around} tokens together or more, and {self._max_tokens} fit"
            raise Invalid(f"`late_chunking` cuts nothing: {found}", param="late_chunking")
        ids, types = self._single.wrap(np.concatenate([*before, *parts]))
        first = len(self._single.fixed[0]) + len(before[0])
        encoding = Encoding(ids, sum(map(len, texts)), prompt_tokens=first if prompt else 0, token_types=types)
        return Chunked(encoding, [slice(first + start, first + stop) for start, stop in places])

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool, prompt: str | None = None
    ) -> list[TextTokens]:
        """The tokens of each text, with their places in prompt + text."""
        before, after = [], []
        if add_special_tokens:
            before, after = ([self._special(id) for id in part.tolist()] for part in self._single.fixed)
        full = [(prompt or "") + text for text in texts]
        read = zip(full, self._reader.each(full), strict=True)
        return [TextTokens(text, parts, before, after) for text, parts in read]

    def _special(self, id: int) -> Token:
        return Token(id, self._library.id_to_token(id) or "", True, None, None)

    def added(self, prompt: str | None, *, specials: bool) -> int:
        """The number of characters that `tokenize` adds to a text: for a special token its own and four."""
        ids = [id for part in self._single.fixed for id in part.tolist()] if specials else []
        return len(prompt or "") + sum(4 + len(self._special(id).text) for id in ids)

    def decoded(self, ids: Sequence[list[int]]) -> int:
        """The most characters that `decode` can make. Raises Invalid for an id outside the vocabulary."""
        for i, item in enumerate(ids):
            self._check_ids(i, item)
        return limits.decoded(self._library) * sum(int((self._token_lengths[item] + 1).sum()) for item in ids if item)

    @cached_property
    def _token_lengths(self) -> np.ndarray:
        """The number of characters of each token."""
        return np.array([len(token) for token in vocabulary(self._library, self._vocab_size)])

    def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each list of ids, which `decoded` has checked."""
        with library_errors("tokenizer error", Untokenizable):
            return self._library.decode_batch(list(ids), skip_special_tokens=skip_special_tokens)

    def _read(self, wanted: Iterable[Wanted]) -> dict[Wanted, np.ndarray]:
        """int32[tokens], without specials, of each distinct text: all of a short text, the wanted tokens of a long
        one."""
        groups: dict[tuple[int, Direction], list[str]] = {}
        for text, most, direction in dict.fromkeys(wanted):
            groups.setdefault((most, direction), []).append(text)
        return {
            (text, most, direction): ids if self._left_out is None else ids[ids != self._left_out]
            for (most, direction), texts in groups.items()
            for text, ids in zip(texts, self._reader.ids(texts, most, direction), strict=True)
        }

    def _encoded(
        self, index: int, item: Input | RenderedPair, bodies: Mapping[Wanted, np.ndarray], how: How
    ) -> Encoding:
        match item:
            case RenderedPair():
                return self._finish_rendered(index, item, bodies, how)
            case (str(first), str(second)):
                return self._finish_pair(index, (first, second), bodies, how)
            case str():
                body, characters = bodies[how.of(how.prompt + item)], len(item)
                prompt_tokens = len(self._single.fixed[0]) + len(bodies[how.of(how.prompt)]) if how.prompt else 0
            case _:
                self._check_ids(index, item)
                body, characters, prompt_tokens = np.array(item, np.int32), 0, 0
        limit = self._limit(how.role)
        counted = characters == 0 or len(body) != how.most
        self._check_length(index, len(body) + self._single.size, limit, how.truncate, counted=counted)
        room = limit - self._single.size
        before = max(0, prompt_tokens - len(self._single.fixed[0])) if how.direction == "right" else 0
        if len(body) > room and room <= before:
            raise self._no_room(self._single.size + before, "a text")
        ids, types = self._single.wrap(cut(body, room, how.direction))
        is_truncated = len(body) > room
        encoding = Encoding(ids, characters, prompt_tokens=prompt_tokens, token_types=types, is_truncated=is_truncated)
        if how.role is None or self._late is None:
            return encoding
        return self._as_role(encoding, how.role, self._late)

    def _finish_pair(
        self, index: int, item: tuple[str, str], bodies: Mapping[Wanted, np.ndarray], how: How
    ) -> Encoding:
        whole = bodies[how.of_second(item[1])]
        read = bodies[how.of(how.before_pairs + item[0])], whole[: how.max_second_tokens]
        tokens, counted = sum(map(len, read)) + self._pair.size, all(len(body) != how.most for body in read)
        self._check_length(index, tokens, self._max_tokens, how.truncate, counted=counted)
        room = self._max_tokens - self._pair.size
        if room < min(2, sum(map(len, read))):
            raise self._no_room(self._pair.size, "a pair")
        first, second = self._lengths(item, len(read[0]), len(read[1]), how)
        lengths = longest_first(first, second, room)
        ids, types = self._pair.wrap(
            *(cut(body, length, how.direction) for body, length in zip(read, lengths, strict=True))
        )
        is_truncated = tokens > self._max_tokens or len(read[1]) < len(whole)
        return Encoding(ids, sum(map(len, item)), token_types=types, is_truncated=is_truncated)

    def _lengths(self, item: tuple[str, str], first: int, second: int, how: How) -> tuple[int, int]:
        """Two lengths by which a pair is cut as by the true lengths. If both are longer than is read, it matters only
        which is the longer; for texts too long to be counted that is the one with more characters."""
        if min(first, second) < how.most:
            return first, second
        if max(map(len, item)) > COUNTED:
            return len(item[0]), len(item[1])
        first, second = (sum(map(len, self._reader.tokens(text))) for text in item)
        return first, second if how.max_second_tokens is None else min(second, how.max_second_tokens)

    def _rendered(
        self, template: PairTemplate, item: Input, instruction: str | None, max_second_tokens: int | None
    ) -> Input | RenderedPair:
        """A pair rendered by the template; other inputs unchanged."""
        if not isinstance(item, tuple) or not any(item):
            return item
        query, document = (text.strip() for text in item) if template.strips else item
        is_truncated = False
        if max_second_tokens is not None:
            read = joined_tokens(list(self._reader.tokens(document, max_second_tokens + 1)))
            is_truncated = len(read) > max_second_tokens
            document = document[: read.ends[:max_second_tokens][-1]] if len(read) else document
        pieces = template.pieces(query, document, instruction)
        return RenderedPair(len(query) + len(item[1]), query, document, is_truncated, *pieces)

    def _finish_rendered(
        self, index: int, item: RenderedPair, bodies: Mapping[Wanted, np.ndarray], how: How
    ) -> Encoding:
        nothing = np.zeros(0, np.int32)
        prefix, body, suffix = (np.concatenate([nothing, *(bodies[how.of(of)] for of in part)]) for part in item.parts)
        fixed = len(prefix) + len(suffix)
        room = self._max_tokens - fixed
        if room <= 0:
            raise self._no_room(fixed, "a pair")
        counted = all(len(bodies[how.of(piece)]) != how.most for piece in item.body)
        self._check_length(index, len(body) + fixed, self._max_tokens, how.truncate, counted=counted)
        if len(body) > room:
            self._check_both_stay(index, item, room, how.direction)
        ids = np.concatenate([prefix, cut(body, room, how.direction), suffix])
        return Encoding(ids, item.characters, is_truncated=item.is_truncated or len(body) > room)

    def _check_both_stay(self, index: int, item: RenderedPair, room: int, direction: Direction) -> None:
        """Raises Invalid if a cut would leave nothing of one of the texts."""
        kept = item.head if direction == "right" else (item.document,)
        tokens = sum(map(len, self._reader.ids(kept, room, direction)))
        if tokens < room:
            return
        if direction == "right" and 2 * len(item.query) < sum(map(len, kept)):
            raise self._no_room(self._max_tokens - room + tokens, "a document")
        part, other = (0, "document") if direction == "right" else (1, "query")
        reason = f"`inputs` leaves no room for a {other} in {self._max_tokens} tokens"
        raise Invalid(reason, param="inputs", place=index, part=part)

    def _no_room(self, around: int, texts: str) -> Invalid:
        """The error for less than `texts` of room beside the tokens `around` them."""
        if self._requested_tokens is None:
            reason = f"`instruction` leaves no room for {texts} in {self._max_tokens} tokens"
            return Invalid(reason, param="instruction")
        reason = f"`truncate_prompt_tokens` {self._requested_tokens} leaves no room for {texts} beside {around} tokens"
        return Invalid(reason, param="truncate_prompt_tokens")

    def _limit(self, role: Role | None) -> int:
        if self._late is None or role is None:
            return self._max_tokens
        limit = self._late.query_tokens if role == "query" else self._late.document_tokens
        return min(limit or self._max_tokens, self._max_tokens)

    def _as_role(self, encoding: Encoding, role: Role, late: LateInteraction) -> Encoding:
        """A ColBERT encoding: queries are padded with the mask token; tokens of the skiplist are not compared."""
        ids, attended = encoding.ids, None
        scored = np.ones(len(ids), bool)
        if role == "document" or late.skip_queries:
            scored = ~np.isin(ids, self._skipped)
        if role == "query" and len(ids) < late.expansion:
            attended = None if late.attend else len(ids)
            ids = np.append(ids, np.full(late.expansion - len(ids), self._mask, np.int32))
            scored = np.append(scored, np.ones(len(ids) - len(scored), bool))
        marked = np.flatnonzero(scored).astype(np.int32)
        return replace(encoding, ids=ids, token_types=None, attended=attended, marked=marked)

    def _continues(self, text: str, tokens: Tokens) -> np.ndarray:
        """bool[n], as in transformers' TokenClassificationPipeline.gather_pre_entities."""
        starts, ends = tokens.starts, tokens.ends
        found: np.ndarray
        if getattr(self._library.model, "continuing_subword_prefix", None):
            found = self._token_lengths[tokens.ids] != ends - starts
        else:
            first = max(0, int(starts.min(initial=1)) - 1)
            here = text[first : int(starts.max(initial=0)) + 1] + "\0"
            blank = np.frombuffer(here.encode("utf-32-le", "surrogatepass"), np.uint32) == ord(" ")
            found = (starts > 0) & ~blank[starts - 1 - first] & ~blank[starts - first]
        if self.unknown is not None:
            found &= tokens.ids != self.unknown
        return found

    def _check_length(self, index: int, tokens: int, limit: int, truncate: bool, *, counted: bool = True) -> None:
        """Raises Invalid. With `counted`, `tokens` is exact."""
        if tokens > limit and not truncate:
            given = tokens if counted else f"more than {limit}"
            raise Invalid(f"`inputs` must have at most {limit} tokens. Given: {given}", param="inputs", place=index)

    def _check_ids(self, index: int, ids: list[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            reason = f"token id {wrong} is outside the vocabulary of {self._vocab_size}"
            raise Invalid(f"`inputs`: {reason}", param="inputs", place=index)
