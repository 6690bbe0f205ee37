"""Attention over packed tokens: each group of equal lengths is one dense call, so no token attends to padding."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.engines.torch.layout import Group


def packed_attention(qkv: Tensor, groups: tuple[Group, ...], heads: int, biases: list[Tensor | None]) -> Tensor:
    """softmax(q kᵀ / √d + bias) v in each sequence. qkv: [T, 3 * hidden]; biases, for each group, broadcast to
    [count, heads, length, length]; returns [T, hidden]."""
    hidden = qkv.shape[1] // 3
    context = torch.zeros_like(qkv[:, :hidden])  # rows beyond the last token stay zero
    for group, bias in zip(groups, biases, strict=True):
        shape = (group.count, group.length, 3, heads, hidden // heads)
        q, k, v = qkv[group.tokens].view(shape).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        context[group.tokens].view(shape[0], shape[1], heads, -1).copy_(attended.transpose(1, 2))
    return context


def unseen_bias(attended: np.ndarray, length: int) -> Tensor | None:
    """attended: int[count], the leading tokens of each sequence that are seen → float32[count, 1, 1, length], -inf on
    the keys after them; None where all are seen."""
    if (attended >= length).all():
        return None
    unseen = torch.from_numpy(np.arange(length) >= attended[:, None])
    return torch.zeros(unseen.shape).masked_fill_(unseen, -math.inf)[:, None, None]


class BiasTable:
    """The relative bias of every distance."""

    def __init__(self, by_distance: Tensor):
        self._by_distance = by_distance  # [heads, 2 * max_tokens - 1]

    def of(self, length: int) -> Tensor:
        """[heads, length, length]: row i, column j holds the bias of distance j - i."""
        zero = self._by_distance.shape[1] // 2
        near = self._by_distance[:, zero + 1 - length : zero + length]
        return near.unfold(1, length, 1).flip(1)
