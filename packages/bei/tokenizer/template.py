"""Special tokens around one text or two, and the cutting that makes them fit. It works on ids, without library state.

In the library truncation is state of the whole tokenizer; so it is off, and texts are cut here, as the library would.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from tokenizers import Encoding as Probe
from tokenizers import Tokenizer as Library

from bei.errors import SetupError

Direction = Literal["left", "right"]


@dataclass(frozen=True)
class Template:
    """`fixed` are the special ids before, between and after the bodies, and `fixed_types` their token types:
    int32[specials] each. `body_types` has one token type per body."""

    fixed: tuple[np.ndarray, ...]
    fixed_types: tuple[np.ndarray, ...]
    body_types: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """The number of special tokens."""
        return sum(map(len, self.fixed))

    def bare(self) -> Self:
        """Without its special tokens."""
        nothing = tuple(part[:0] for part in self.fixed)
        return replace(self, fixed=nothing, fixed_types=nothing)

    def between(self, before: Sequence[int], after: Sequence[int]) -> Self:
        """With more special ids, of type 0, at the beginning and at the end."""

        def around(parts: tuple[np.ndarray, ...], first: Sequence[int], last: Sequence[int]) -> tuple[np.ndarray, ...]:
            head, tail = np.array(first, np.int32), np.array(last, np.int32)
            return (np.append(head, parts[0]), *parts[1:-1], np.append(parts[-1], tail))

        types = around(self.fixed_types, [0] * len(before), [0] * len(after))
        return replace(self, fixed=around(self.fixed, before, after), fixed_types=types)

    @cached_property
    def _has_types(self) -> bool:
        return any(self.body_types) or any(map(np.any, self.fixed_types))

    def wrap(self, *bodies: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """int32[tokens] each: ids with specials, and their types; None if all types are 0."""
        ids = _alternate(self.fixed, bodies)
        if not self._has_types:
            return ids, None
        types = [np.full(len(body), kind, np.int32) for body, kind in zip(bodies, self.body_types, strict=True)]
        return ids, _alternate(self.fixed_types, types)


def learn(library: Library, texts: Literal[1, 2], *, types: bool) -> Template:
    """The template of the library for one text or two, found by a probe; without `types` all types are 0. Raises
    SetupError."""
    probe: Probe = library.encode("a", "a" if texts == 2 else None)
    type_ids = probe.type_ids if types else [0] * len(probe.ids)
    spans = [[i for i, owner in enumerate(probe.sequence_ids) if owner == text] for text in range(texts)]
    if not all(spans):
        raise SetupError(
            "tokenizer.json is not a tokenizer: of what it makes of a text, no token is the text's; its post_processor "
            "may have one TemplateProcessing, not two in a row"
        )
    ends = [0, *(at for span in spans for at in (span[0], span[-1] + 1)), len(probe.ids)]
    fixed = [slice(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True)]
    return Template(
        tuple(np.array(probe.ids[part], np.int32) for part in fixed),
        tuple(np.array(type_ids[part], np.int32) for part in fixed),
        tuple(type_ids[span[0]] for span in spans),
    )


def _alternate(fixed: Sequence[np.ndarray], bodies: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([fixed[0], *(part for pair in zip(bodies, fixed[1:], strict=True) for part in pair)])


def cut(body: np.ndarray, room: int, direction: Direction) -> np.ndarray:
    return body[:room] if direction == "right" else body[max(0, len(body) - room) :]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths to which a pair is cut: the longer text is cut until both are equal (tokenizers,
    utils/truncation.rs)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def windows(length: int, room: int, overlap: int) -> list[range]:
    """Parts of a long body, of `room` tokens each but the last, which overlap by `overlap` (tokenizers,
    Encoding::truncate)."""
    starts = range(0, max(1, length - overlap), room - overlap)
    return [range(start, min(start + room, length)) for start in starts]


def inner(parts: Sequence[range]) -> list[range]:
    """The parts without their overlaps: each overlap is halved between the two parts that share it."""
    middles = [(after.start + before.stop) // 2 for before, after in pairwise(parts)]
    edges = [parts[0].start, *middles, parts[-1].stop]
    return [range(start, stop) for start, stop in pairwise(edges)]
