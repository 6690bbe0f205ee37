"""Cuts a batch into chunks of the shapes for which a plan was built. Pure."""

from dataclasses import dataclass

import numpy as np

_SHORTEST, _GROWTH = 128, 4
_PADDED_NUMBERS = 1 << 28  # of the widest padded tensor: 1 GiB in float32


@dataclass(frozen=True)
class Profile:
    """The limits of one call: `tokens` in all, `sequences`, and `length` tokens of each. TensorRT plans memory and
    chooses kernels per profile. Sequences of similar length are in one call, so there is little padding."""

    tokens: int
    sequences: int
    length: int


def profiles(
    longest: int, max_tokens: int, max_sequences: int, padded_width: int, scored_heads: int = 0
) -> tuple[Profile, ...]:
    """Profiles from short texts to the `longest`. `padded_width` is the width of the widest tensor with a row for each
    padded place, beside the scores of `scored_heads` heads."""
    slots = max(longest, min(max(longest, max_tokens), _PADDED_NUMBERS // padded_width))
    found, length = [], min(_SHORTEST, longest)
    while True:
        scores = max(1, scored_heads * length**2)
        sequences = max(1, min(max_sequences, slots // length, _PADDED_NUMBERS // scores))
        found.append(Profile(min(slots, sequences * length), sequences, length))
        if length == longest:
            return tuple(found)
        length = min(length * _GROWTH, longest)


@dataclass(frozen=True)
class Chunk:
    """The sequences of one call, by their index in the batch, and the number of its profile."""

    profile: int
    sequences: np.ndarray


def chunks(lengths: np.ndarray, of: tuple[Profile, ...]) -> list[Chunk]:
    """Chunks that hold every sequence once, shortest first. Raises ValueError for one that fits no profile."""
    order = np.argsort(lengths, kind="stable")
    found, start = [], 0
    for i, profile in enumerate(of):
        stop = int(np.searchsorted(lengths[order], profile.length, side="right"))
        while start < stop:
            room = np.searchsorted(np.cumsum(lengths[order[start:stop]]), profile.tokens, side="right")
            taken = min(int(room), profile.sequences)
            found.append(Chunk(i, order[start : start + taken]))
            start += taken
    if start < len(lengths):
        raise ValueError(f"a sequence of {lengths[order[-1]]} tokens is longer than the plan takes, {of[-1].length}")
    return found
