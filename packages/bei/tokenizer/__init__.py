"""Texts or token ids to encodings: prompts, special tokens, truncation. Never called on the event loop.

The library keeps truncation as state of the whole tokenizer, so we leave it off and cut here: the special tokens
before and after a text are learned once, and an encoding is prefix + body, cut to fit + suffix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer as Library

from bei.checkpoint.load import Checkpoint
from bei.errors import Empty, Invalid, SetupError, Untokenizable

Direction = Literal["left", "right"]
Input = str | list[int]


@dataclass(frozen=True, slots=True)
class Encoding:
    """`ids` with specials; `prompt_tokens` of them are the prompt's and the specials before it."""

    ids: list[int]
    prompt_tokens: int
    characters: int


@dataclass(frozen=True, slots=True)
class Token:
    """`start` and `stop` are offsets into the text's UTF-8 bytes, as TEI's; None for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """Safe to call from several threads. `max_tokens` counts specials and the prompt."""

    def __init__(self, checkpoint: Checkpoint, default_prompt: str | None = None):
        self._library = _load(str(checkpoint.tokenizer_file))
        self._prefix, self._suffix = _specials(self._library)
        self._vocab_size = checkpoint.spec.vocab_size
        self._lowercase = checkpoint.lowercase
        self._prompts = checkpoint.prompts.texts
        self._default_prompt = default_prompt
        self._max_tokens = checkpoint.max_tokens
        self._room = checkpoint.max_tokens - len(self._prefix) - len(self._suffix)
        if self._room < 1:
            raise SetupError(f"{checkpoint.max_tokens} tokens leave no room for a text beside the special tokens")

    def prompt(self, name: str | None) -> str | None:
        """The text of a prompt, of the default one without a name. Raises Invalid for a name that the model lacks."""
        if name is None:
            return self._default_prompt
        if name not in self._prompts:
            known = ", ".join(sorted(self._prompts)) or "none"
            raise Invalid(f"`prompt_name` {name!r} is not one of the model's prompts: {known}", param="prompt_name")
        return self._prompts[name]

    def encode(
        self, inputs: Sequence[Input], *, truncate: bool, direction: Direction = "right", prompt: str | None = None
    ) -> list[Encoding]:
        """One encoding an input. Raises Empty, Invalid or Untokenizable naming the input by its place."""
        prompt_tokens = len(self._prefix) + len(self._bodies([prompt])[0]) if prompt else 0
        texts = {i: (prompt or "") + item for i, item in enumerate(inputs) if isinstance(item, str)}
        bodies = dict(zip(texts, self._bodies(list(texts.values())), strict=True))
        return [
            self._finish(i, item, bodies.get(i, item), prompt_tokens, truncate, direction)
            for i, item in enumerate(inputs)
        ]

    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool, prompt: str | None = None
    ) -> list[list[Token]]:
        """The tokens of each text, with where each stands in prompt + text."""
        full = [(prompt or "") + text for text in texts]
        encodings = self._library.encode_batch(self._cased(full), add_special_tokens=add_special_tokens)
        return [_tokens(text, encoding) for text, encoding in zip(full, encodings, strict=True)]

    def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool) -> list[str]:
        for i, item in enumerate(ids):
            self._check_ids(i, item)
        return self._library.decode_batch(list(ids), skip_special_tokens=skip_special_tokens)

    def _bodies(self, texts: list[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self._library.encode_batch_fast(self._cased(texts), add_special_tokens=False)]
        except Exception as exc:
            # The library raises bare exceptions: a lone surrogate, a word that its vocabulary cannot express.
            raise Untokenizable(f"tokenizer error: {exc}") from None

    def _cased(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lowercase else texts

    def _finish(
        self, index: int, item: Input, body: list[int], prompt_tokens: int, truncate: bool, direction: Direction
    ) -> Encoding:
        if not item:
            raise Empty(f"`inputs` cannot be empty (input {index})")
        if not isinstance(item, str):
            prompt_tokens = 0
            self._check_ids(index, item)
        if len(body) > self._room:
            if not truncate:
                given = len(body) + self._max_tokens - self._room
                raise Invalid(f"`inputs` must have less than {self._max_tokens} tokens. Given: {given} (input {index})")
            body = body[: self._room] if direction == "right" else body[-self._room :]
        characters = len(item) if isinstance(item, str) else 0
        return Encoding([*self._prefix, *body, *self._suffix], prompt_tokens, characters)

    def _check_ids(self, index: int, ids: list[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise Invalid(f"token id {wrong} is outside the vocabulary of {self._vocab_size} (input {index})")


def _load(file: str) -> Library:
    try:
        library = Library.from_file(file)
    except Exception as exc:  # the library raises bare exceptions
        raise SetupError(f"{file} is not a tokenizer ({exc}); download it again") from None
    library.no_truncation()
    library.no_padding()
    return library


def _specials(library: Library) -> tuple[list[int], list[int]]:
    """The special ids before and after a text, from a probe encoded with and without them."""
    body = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a").ids
    at = next(i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body)
    return whole[:at], whole[at + len(body) :]


def _tokens(text: str, encoding) -> list[Token]:
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
