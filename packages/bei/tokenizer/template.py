"""Special tokens around one text or two, and what is cut so that they fit. Lists of ids only; no library state.

The library keeps truncation as state of the whole tokenizer, so we leave it off and cut here, as it would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tokenizers import Encoding as Probe
from tokenizers import Tokenizer as Library

Direction = Literal["left", "right"]


@dataclass(frozen=True)
class Template:
    """`fixed` are the special ids before, between and after the `texts` bodies; `fixed_types` and `body_types` are
    token types."""

    fixed: tuple[list[int], ...]
    fixed_types: tuple[list[int], ...]
    body_types: tuple[int, ...]

    @property
    def size(self) -> int:
        """Special tokens."""
        return sum(map(len, self.fixed))

    def wrap(self, *bodies: list[int]) -> tuple[list[int], list[int] | None]:
        """Ids with specials, and their types; None where all are 0."""
        ids, types = list(self.fixed[0]), list(self.fixed_types[0])
        for i, body in enumerate(bodies):
            ids += body + self.fixed[i + 1]
            types += [self.body_types[i]] * len(body) + self.fixed_types[i + 1]
        return ids, types if any(types) else None


def learn(library: Library, texts: Literal[1, 2], *, types: bool) -> Template:
    """What the library puts around one text or two, from a probe; without `types` all are 0."""
    probe: Probe = library.encode(*["a"] * texts)
    type_ids = probe.type_ids if types else [0] * len(probe.ids)
    spans = [[i for i, owner in enumerate(probe.sequence_ids) if owner == text] for text in range(texts)]
    ends = [0, *(at for span in spans for at in (span[0], span[-1] + 1)), len(probe.ids)]
    fixed = [slice(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True)]
    return Template(
        tuple(probe.ids[part] for part in fixed),
        tuple(type_ids[part] for part in fixed),
        tuple(type_ids[span[0]] for span in spans),
    )


def cut(body: list[int], room: int, direction: Direction) -> list[int]:
    return body[:room] if direction == "right" else body[max(0, len(body) - room) :]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths to which a pair is cut: the longer one loses, to a tie (tokenizers, utils/truncation.rs)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def windows(length: int, room: int, overlap: int) -> list[range]:
    """Parts of a long body, each `room` long but the last, that share `overlap` (tokenizers, Encoding::truncate)."""
    starts = range(0, max(1, length - overlap), room - overlap)
    return [range(start, min(start + room, length)) for start in starts]


def inner(parts: Sequence[range]) -> list[range]:
    """The parts without what their neighbours know better: each overlap is halved between the two that share it."""
    middles = [(after.start + before.stop) // 2 for before, after in pairwise(parts)]
    edges = [parts[0].start, *middles, parts[-1].stop]
    return [range(start, stop) for start, stop in pairwise(edges)]
