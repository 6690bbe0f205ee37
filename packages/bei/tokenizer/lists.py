"""A query and a list of documents as prompts, for a model that ranks them together.

The lengths of texts and the blocks are those of `rerank` in jina-reranker-v3's modeling.py, which leaves its own marks
out of the texts, too. Beyond it, a block whose prompt is longer than the limit is halved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer as Library

from bei.checkpoint.list_reranking import ListTemplate
from bei.errors import Empty, Invalid, SetupError, Untokenizable, library_errors, short
from bei.tokenizer.encoding import Encoding
from bei.tokenizer.reading import Reader
from bei.tokenizer.template import Direction, Template, cut


@dataclass(frozen=True, slots=True)
class Lists:
    """A sequence of prompts, which share the documents in their order. The marked tokens of each are those of its
    documents, and then the query's. `truncated` counts the documents that were cut, or all if the query was."""

    encodings: list[Encoding]
    truncated: int

    def __len__(self) -> int:
        return len(self.encodings)

    def __iter__(self) -> Iterator[Encoding]:
        return iter(self.encodings)


@dataclass(frozen=True, slots=True)
class HowLists:
    """`max_tokens` is the limit of a prompt, with the special tokens of `around`; `requested`: the request has lowered
    it. Documents are cut at `document_tokens`, whatever `truncate` is."""

    truncate: bool
    direction: Direction
    instruction: str | None
    document_tokens: int | None
    max_tokens: int
    requested: bool
    around: Template


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    ids: np.ndarray
    is_cut: bool = False


class ListReader:
    """Safe to call from several threads."""

    def __init__(self, template: ListTemplate, library: Library, reader: Reader):
        """Raises SetupError for a tokenizer without the marks of the template."""
        self._template, self._library, self._reader = template, library, reader
        document, query = template.document_mark, template.query_mark
        self._marks = np.array([_mark(library, document), _mark(library, query)], np.int32)

    def read(self, query: str, documents: Sequence[str], how: HowLists) -> Lists:
        """Raises Empty or Invalid, which name the document by its place, or Untokenizable."""
        empty = next((i for i, document in enumerate(documents) if not query and not document), None)
        if empty is not None:
            raise Empty("`inputs` cannot be empty", param="inputs", place=empty)
        own, asked = self._template.document_tokens, how.document_tokens
        (asking,) = self._texts([query], self._template.query_tokens, how, 0)
        if asked is not None and asked <= own:
            own, how_documents = asked, replace(how, truncate=True, direction="right")
        else:
            how_documents = how
        texts = self._texts(documents, own, how_documents, 1)
        room = how.max_tokens - 2 * len(asking.ids)
        blocks = _blocks([len(text.ids) for text in texts], room, own, self._template.documents)
        found = [one for block in blocks for one in self._fitting(asking.text, texts, block, how)]
        cut_here = {block.start for block, encoding in found if encoding.is_truncated}
        truncated = cut_here | {i for i, text in enumerate(texts) if text.is_cut or asking.is_cut}
        return Lists([encoding for _, encoding in found], len(truncated))

    def _texts(self, texts: Sequence[str], most: int, how: HowLists, part: int) -> list[_Text]:
        """The texts, cut at `most` tokens. Raises Invalid without `truncate`."""
        found = []
        for i, (text, ids) in enumerate(zip(texts, self._reader.ids(texts, most + 1, how.direction), strict=True)):
            if len(ids) <= most:
                found.append(_Text(text, ids))
                continue
            if not how.truncate:
                reason = f"`inputs` must have at most {most} tokens. Given: {_given(ids, most)}"
                raise Invalid(reason, param="inputs", place=i, part=part)
            found.append(self._cut(ids, most, how.direction))
        return found

    def _cut(self, ids: np.ndarray, most: int, direction: Direction) -> _Text:
        kept = cut(ids, most, direction)
        with library_errors("tokenizer error", Untokenizable):
            return _Text(self._library.decode(kept.tolist(), skip_special_tokens=False), kept, is_cut=True)

    def _fitting(
        self, query: str, texts: Sequence[_Text], block: range, how: HowLists
    ) -> Iterator[tuple[range, Encoding]]:
        """The documents of a block as one prompt, or as several if it is too long."""
        encoding = self._encoding(query, [texts[i].text for i in block], how)
        if len(encoding.ids) <= how.max_tokens:
            yield block, encoding
        elif len(block) == 1:
            yield block, self._alone(query, texts[block.start], len(encoding.ids), block.start, how)
        else:
            middle = (block.start + block.stop) // 2
            yield from self._fitting(query, texts, range(block.start, middle), how)
            yield from self._fitting(query, texts, range(middle, block.stop), how)

    def _alone(self, query: str, document: _Text, tokens: int, place: int, how: HowLists) -> Encoding:
        """A prompt of one document, which is cut to make it fit. `tokens`: those of the prompt before the cut."""
        if not how.truncate:
            reason = f"`inputs` must have at most {how.max_tokens} tokens. Given: {tokens}"
            raise Invalid(reason, param="inputs", place=place)
        while True:
            left = len(document.ids) + how.max_tokens - tokens
            if left <= 0:
                raise self._no_room(how, tokens - len(document.ids))
            document = self._cut(document.ids, left, how.direction)
            encoding = self._encoding(query, [document.text], how)
            tokens = len(encoding.ids)
            if tokens <= how.max_tokens:
                return replace(encoding, is_truncated=True)

    def _no_room(self, how: HowLists, around: int) -> Invalid:
        if how.requested:
            param = "truncate_prompt_tokens"
            return Invalid(
                f"`{param}` {how.max_tokens} leaves no room for a document beside {around} tokens", param=param
            )
        reason = f"leaves no room for a document in {how.max_tokens} tokens"
        if how.instruction:
            return Invalid(f"`instruction` {reason}", param="instruction")
        return Invalid(f"`inputs` {reason}", param="inputs", place=0, part=0)

    def _encoding(self, query: str, documents: Sequence[str], how: HowLists) -> Encoding:
        """The prompt is read in the parts between its marks, at which a tokenizer divides it, too."""
        parts = self._parts(self._without_marks(query), list(map(self._without_marks, documents)), how.instruction)
        marks = np.repeat(self._marks, [len(documents), 1])
        read = [ids[~np.isin(ids, self._marks)] for ids in self._reader.ids(parts, how.max_tokens + 1)]
        places = np.cumsum([len(ids) + 1 for ids in read[:-1]]) - 1
        body = np.insert(np.concatenate(read), places - np.arange(len(marks)), marks)
        ids, types = how.around.wrap(body)
        marked = (places + len(how.around.fixed[0])).astype(np.int32)
        return Encoding(ids, len(query) + sum(map(len, documents)), token_types=types, marked=marked)

    def _parts(self, query: str, documents: Sequence[str], instruction: str | None) -> list[str]:
        template = self._template
        before = template.before.format(count=len(documents), query=query)
        if instruction:
            before += template.instruction.format(instruction=instruction)
        parts = []
        for i, document in enumerate(documents):
            parts.append(before + template.document.format(index=i, document=document))
            before = template.after_document
        return [*parts, before + template.query.format(query=query), template.after]

    def _without_marks(self, text: str) -> str:
        return text.replace(self._template.query_mark, "").replace(self._template.document_mark, "")


def _blocks(lengths: Sequence[int], room: int, longest: int, most: int) -> Iterator[range]:
    """The documents of each prompt, which has `room` tokens for them: at most `most`, and no more once `longest` tokens
    may not fit."""
    start, left = 0, room
    for stop, length in enumerate(lengths, 1):
        left -= length
        if stop - start >= most or left <= longest:
            yield range(start, stop)
            start, left = stop, room
    if start < len(lengths):
        yield range(start, len(lengths))


def _given(ids: np.ndarray, most: int) -> str:
    return str(len(ids)) if len(ids) != most + 1 else f"more than {most}"


def _mark(library: Library, token: str) -> int:
    id = library.token_to_id(token)
    if id is None or library.encode(token, add_special_tokens=False).ids != [id]:
        raise SetupError(f"tokenizer.json has no special token {short(token)}, at which the model's rows are read")
    return id
