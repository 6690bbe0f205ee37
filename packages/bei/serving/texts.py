"""Tokenizes the inputs of a request according to its options, the settings and the model's prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from bei.checkpoint.load import Checkpoint
from bei.errors import Error, Invalid, SetupError, short
from bei.serving.answers import Options
from bei.settings import ModelSettings
from bei.tokenizer import Chunked, Encoding, Input, Lists, Role, Tokenizer

R = TypeVar("R")


class TextReader:
    """One model's tokenizer and prompts. Safe to call from several threads."""

    def __init__(self, settings: ModelSettings, checkpoint: Checkpoint):
        """Raises SetupError."""
        self._settings, self._checkpoint = settings, checkpoint
        self.tokenizer = Tokenizer(checkpoint, _default_prompt(settings, checkpoint))

    def read(self, inputs: Sequence[Input], options: Options, role: Role | None = None) -> list[Encoding]:
        """One encoding per input; `role` is for a ColBERT model. Raises Empty, Invalid or Untokenizable."""
        checkpoint = self._checkpoint
        pairs = any(isinstance(item, tuple) for item in inputs)
        if options.prompt_name is not None and pairs and not checkpoint.prompts.before_pairs:
            raise Invalid("`prompt_name` cannot be set with dual inputs", param="prompt_name")
        if options.instruction is not None:
            self._check_instruction(options, pairs, role)
        tokenizer = self._narrowed(options)
        prompt = tokenizer.role_prompt(role) if role and not options.prompt_name else self._prompt(options)
        templated = checkpoint.pair_template is not None
        read = partial(
            tokenizer.encode,
            inputs,
            truncate=self._settings.auto_truncate if options.truncate is None else options.truncate,
            direction=options.truncation_direction or checkpoint.truncation_side,
            prompt=None if templated else prompt,
            instruction=prompt if templated else None,
            role=role,
            max_second_tokens=options.max_document_tokens,
        )
        return naming(inputs, read)()

    def read_lists(self, query: str, documents: Sequence[str], options: Options) -> Lists:
        """The prompts of a model that ranks documents together. Raises Empty, Invalid or Untokenizable."""
        if options.prompt_name is not None:
            raise Invalid("`prompt_name` cannot be set with dual inputs", param="prompt_name")
        return self._narrowed(options).lists(
            query,
            documents,
            truncate=self._settings.auto_truncate if options.truncate is None else options.truncate,
            direction=options.truncation_direction or self._checkpoint.truncation_side,
            instruction=self._prompt(options),
            max_document_tokens=options.max_document_tokens,
        )

    def read_chunks(self, texts: Sequence[str], spans: Sequence[tuple[int, int]] | None, options: Options) -> Chunked:
        """Texts read as one, or one text with its spans. Raises Empty, Invalid or Untokenizable."""
        tokenizer = self._narrowed(options)
        return naming(texts, lambda: tokenizer.chunked(texts, spans, self._prompt(options)))()

    def of_documents(self, options: Options) -> Options:
        """The options for documents that are not the second text of a pair."""
        if options.max_document_tokens is None:
            return options
        tokenizer = self._narrowed(options)
        late = self._checkpoint.task == "multi_vector"
        prompt = tokenizer.role_prompt("document") if late else self._prompt(options)
        most = options.max_document_tokens + tokenizer.around(prompt)
        return replace(options, truncate=True, max_tokens=min(most, options.max_tokens or most))

    def repeated(self, inputs: Sequence[object], options: Options) -> int:
        """How many characters are repeated for each text or pair before it is read."""
        templated = self._checkpoint.pair_template is not None
        queries = sum(len(item[0]) for item in inputs if isinstance(item, tuple)) if templated else 0
        return queries + len(options.instruction or "") * len(inputs)

    def _narrowed(self, options: Options) -> Tokenizer:
        if options.max_tokens is None and options.add_special_tokens:
            return self.tokenizer
        return self.tokenizer.narrowed(options.max_tokens, options.add_special_tokens)

    def _prompt(self, options: Options) -> str | None:
        return self.tokenizer.prompt(options.prompt_name) if options.instruction is None else options.instruction

    def _check_instruction(self, options: Options, pairs: bool, role: Role | None) -> None:
        template = self._checkpoint.pair_template
        if role is not None:
            raise Invalid("`instruction`: a ColBERT model takes none", param="instruction")
        if options.prompt_name is not None:
            raise Invalid("`instruction` cannot be set with `prompt_name`; send one of them", param="instruction")
        if pairs and not (template and template.takes_instruction):
            raise Invalid("`instruction`: this model takes none with a pair", param="instruction")
        if not pairs and template is not None:
            raise Invalid("`instruction` is for pairs; a text alone is read as it is", param="instruction")


def naming(inputs: Sequence[Any], read: Callable[[], R]) -> Callable[[], R]:
    """A `read` whose errors carry the input that they are about."""

    def reading() -> R:
        try:
            return read()
        except Error as error:
            item: Any = None if error.place is None else inputs[error.place]
            error.item = item if error.part is None else item[error.part]
            raise

    return reading


def size(inputs: Sequence[Any]) -> int:
    """The number of characters and token ids of texts, pairs and lists of ids."""
    return sum(sum(map(len, item)) if isinstance(item, tuple) else len(item) for item in inputs)


def _default_prompt(settings: ModelSettings, checkpoint: Checkpoint) -> str | None:
    """The prompt of the settings, or the prompt that they name, or the model's own. Raises SetupError for a name that
    the model lacks."""
    if settings.default_prompt is not None:
        return settings.default_prompt
    prompts = checkpoint.prompts
    name = settings.default_prompt_name or prompts.default
    if name is not None and name not in prompts.texts:
        known = ", ".join(sorted(prompts.texts)) or "none"
        raise SetupError(f"default_prompt_name {short(name)} is not one of the model's prompts: {known}")
    return None if name is None else prompts.texts[name]
