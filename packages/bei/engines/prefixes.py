"""The shared prefix of sequences in a causal batch is computed once: it does not depend on the tokens after it."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from bei.architectures.spec import EncoderSpec
from bei.engines.base import Batch

LEAST = 32  # tokens that are worth a sequence of their own


@dataclass(frozen=True)
class Shared:
    """`batch` has each shared prefix as a sequence of its own, and of the other sequences the rest. `parents`:
    int32[B], the prefix that each sequence continues, -1 for none. `rows`: the index in `batch` of each original
    sequence."""

    batch: Batch
    parents: np.ndarray
    rows: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """int32[B]: the position of each sequence's first token."""
        return np.where(self.parents < 0, 0, self.batch.lengths[self.parents])


def can_share(spec: EncoderSpec) -> bool:
    """Whether only the last token's state is pooled, and a state depends only on the tokens before it."""
    alone = spec.position_offset is None and not any(rotary.dynamic for rotary in spec.rotaries) and not spec.convolves
    return spec.causal and spec.pooling.modes == ("last",) and not spec.token_head and alone


def share(batch: Batch) -> Shared | None:
    """None if no two sequences have the same first `LEAST` tokens."""
    sequences = [batch.input_ids[a:b] for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)]
    alike = defaultdict(list)
    for i, ids in enumerate(sequences):
        if len(ids) > LEAST:
            alike[ids[:LEAST].tobytes()].append(i)
    groups = [part for group in alike.values() if len(group) > 1 for part in _groups(sequences, group)]
    if not groups:
        return None
    parents, cuts, beginnings = np.full(len(sequences), -1, np.int32), np.zeros(len(sequences), np.int64), []
    for number, (group, length) in enumerate(groups):
        beginnings.append(sequences[group[0]][:length])
        parents[group], cuts[group] = number, length
    parts = [*beginnings, *(ids[cut:] for ids, cut in zip(sequences, cuts, strict=True))]
    rows = np.arange(len(beginnings), len(parts))
    shared = replace(
        batch,
        input_ids=np.concatenate(parts),
        token_types=np.zeros(sum(map(len, parts)), np.int32),
        cu_seqlens=np.cumsum([0, *map(len, parts)], dtype=np.int32),
        prompt_tokens=np.zeros(len(parts), np.int32),
        attended=np.array([len(part) for part in parts], np.int32),
    )
    return Shared(shared, np.concatenate([np.full(len(beginnings), -1, np.int32), parents]), rows)


def worth_sharing(sequences: list[np.ndarray]) -> int:
    """The length of the prefix that all sequences share, at most all but one token of each; 0 if `share` would not
    share it."""
    length = _common(sequences)
    return length if length >= LEAST else 0


def _groups(sequences: list[np.ndarray], alike: list[int]) -> list[tuple[list[int], int]]:
    """Groups of `alike` that share a prefix, and the prefix's length: all of them, or smaller groups with longer
    prefixes if that saves more tokens. (All pairs of a reranker share its template; those of one query share the query,
    too.)"""
    length = _common([sequences[i] for i in alike])
    going_on = defaultdict(list)
    for i in alike:
        going_on[int(sequences[i][length])].append(i)
    if len(going_on) == 1:
        return [(alike, length)]
    apart = [part for group in going_on.values() if len(group) > 1 for part in _groups(sequences, group)]
    saved = sum((len(group) - 1) * shared for group, shared in apart)
    return apart if saved > (len(alike) - 1) * length else [(alike, length)]


def _common(sequences: list[np.ndarray]) -> int:
    first, length = sequences[0], min(map(len, sequences)) - 1
    for ids in sequences[1:]:
        differs = np.flatnonzero(ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length
