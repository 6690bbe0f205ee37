"""Attention over packed tokens: sequences of equal length are computed as one dense block, so there is no padding."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.engines.torch.layout import Group

_SCORES = 1 << 24  # numbers of a mask, or of scores, at a time: long sequences take them in blocks of queries

PositionScores = Callable[[Tensor, Tensor, slice, slice, Tensor | None], Tensor]
"""(q, k, their positions, the types of the tokens) → scores that are added to q kᵀ."""


class BiasTable:
    """The bias of each distance."""

    def __init__(self, by_distance: Tensor):
        self._by_distance = by_distance  # [heads, 2 * max_tokens - 1]

    def of(self, queries: slice, keys: slice) -> Tensor:
        """[heads, queries, keys]: row i, column j holds the bias of the distance from i to j."""
        zero = self._by_distance.shape[1] // 2
        near = self._by_distance[:, zero + keys.start - queries.stop + 1 : zero + keys.stop - queries.start]
        return near.unfold(1, keys.stop - keys.start, 1).flip(1)


@dataclass(frozen=True)
class AttentionMask:
    """Which keys the sequences of a group attend to in a layer. `attended`: int[count], the leading tokens of each that
    are attended to. `types`: int[count, length], where scores depend on them."""

    group: Group
    attended: np.ndarray
    causal: bool
    window: int | None
    table: BiasTable | None
    types: Tensor | None = None

    @property
    def all_seen(self) -> bool:
        return bool((self.attended >= self.group.length).all())

    @property
    def near(self) -> int | None:
        """The window, if the sequences are long enough for it to hide anything."""
        return self.window if self.window is not None and self.window < self.group.length - 1 else None

    @property
    def only_causal(self) -> bool:
        return self.causal and self.near is None and self.all_seen and self.table is None

    @property
    def hides_any(self) -> bool:
        return self.causal or self.near is not None or not self.all_seen or self.table is not None

    def blocks(self, heads: int, whole: bool) -> Iterator[tuple[slice, slice]]:
        """Blocks of queries, each with the keys that some of them attend to. The size of a block bounds `heads` numbers
        per pair of query and key. With `whole` there is one block."""
        length = self.group.length
        rows = length if whole else max(16, _SCORES // (self.group.count * heads * length))
        for first in range(0, length, rows):
            last = min(first + rows, length)
            start = 0 if self.near is None else max(0, first - self.near)
            stop = length if self.near is None else min(length, last + self.near)
            yield slice(first, last), slice(start, last if self.causal and not whole else stop)

    def bias(self, queries: slice, keys: slice, like: Tensor) -> Tensor | None:
        """Added to scores, broadcast to [count, heads, queries, keys]: -inf for keys that are not attended to."""
        bias = None if self.table is None else self.table.of(queries, keys)
        hidden = self._hidden(queries, keys)
        if hidden is None:
            return bias
        unseen = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf).to(like.device)
        return unseen if bias is None else bias + unseen

    def _hidden(self, queries: slice, keys: slice) -> Tensor | None:
        """[count or 1, 1, queries or 1, keys]; None if nothing is hidden."""
        if not self.causal and self.near is None and self.all_seen:
            return None
        at = torch.arange(keys.start, keys.stop)
        distance = at - torch.arange(queries.start, queries.stop)[:, None]
        masks = []
        if self.causal:
            masks.append((distance > 0)[None, None])
        if self.near is not None:
            masks.append((distance.abs() > self.near)[None, None])
        if not self.all_seen:
            masks.append((at >= torch.from_numpy(self.attended)[:, None])[:, None, None])
        return functools.reduce(torch.logical_or, masks)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: list[AttentionMask],
    scale: float,
    soft_cap: float | None = None,
    position_scores: PositionScores | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(cap(q kᵀ * scale) + bias) v in each sequence. q: [T, heads, size]; k, v: [T, kv_heads, size]; sinks:
    float32[heads]; returns [T, heads * size]."""
    context = q.new_zeros(len(q), q.shape[1] * q.shape[2])  # rows beyond the last token stay zero
    plain = soft_cap is None and position_scores is None and sinks is None
    for mask in masks:
        group = mask.group
        shape = (group.count, group.length)
        of_q, of_k, of_v = (x[group.tokens].unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
        out = context[group.tokens].view(*shape, *q.shape[1:])
        unmasked = plain and (mask.only_causal or not mask.hides_any)
        heads = 1 if plain and mask.table is None else q.shape[1]
        for queries, keys in mask.blocks(heads, whole=unmasked):
            block = (of_q[:, :, queries], of_k[:, :, keys], of_v[:, :, keys])
            if plain:
                bias = None if unmasked else mask.bias(queries, keys, q)
                gqa = q.shape[1] != k.shape[1]
                attended = F.scaled_dot_product_attention(
                    *block, attn_mask=bias, is_causal=mask.only_causal, scale=scale, enable_gqa=gqa
                )
            else:
                bias = mask.bias(queries, keys, q)
                extra = position_scores(*block[:2], queries, keys, mask.types) if position_scores else None
                attended = _attend(*block, bias, scale, soft_cap, extra, sinks)
            out[:, queries] = attended.transpose(1, 2)
    return context


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    soft_cap: float | None,
    extra: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same, with the scores made explicitly."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).float()
    scores = (scores if extra is None else scores + extra) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., : v.shape[-2]].to(v.dtype) @ v
