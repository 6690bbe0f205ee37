"""Token states to rows on the device: the reduction that the spec names. `engines.base.pool` is its oracle."""

import torch
from torch import Tensor

from bei.architectures.spec import Pooling
from bei.engines.base import Batch
from bei.engines.torch.layout import Layout


def pool(states: Tensor, batch: Batch, layout: Layout, pooling: Pooling) -> Tensor:
    """states: float32[T, hidden], sorted as `layout` → float32[B, hidden * len(modes)], sorted too."""
    lengths = torch.from_numpy(layout.lengths).to(states.device)
    positions = torch.from_numpy(layout.positions).to(states.device)
    if not pooling.include_prompt:
        prompts = torch.from_numpy(batch.prompt_tokens[layout.sequences]).to(states.device)
        prompts = torch.minimum(prompts, lengths - 1)
        kept = positions >= prompts.repeat_interleave(lengths)
        states, positions, lengths = states[kept], positions[kept], lengths - prompts
    ends = lengths.cumsum(0)
    reduced = [_reduce(mode, states, positions, lengths, ends) for mode in pooling.modes]
    return reduced[0] if len(reduced) == 1 else torch.cat(reduced, 1)


def _reduce(mode: str, states: Tensor, positions: Tensor, lengths: Tensor, ends: Tensor) -> Tensor:
    match mode:
        case "first":
            return states[ends - lengths]
        case "last":
            return states[ends - 1]
        case "mean" | "max" | "sum":
            return torch.segment_reduce(states, mode, lengths=lengths, axis=0)
        case "mean_sqrt_len":
            return torch.segment_reduce(states, "sum", lengths=lengths, axis=0) / lengths.sqrt()[:, None]
        case "weighted_mean":
            weights = (positions + 1).float()
            sums = torch.segment_reduce(states * weights[:, None], "sum", lengths=lengths, axis=0)
            return sums / torch.segment_reduce(weights, "sum", lengths=lengths)[:, None]
        case _:
            raise ValueError(f"no such pooling mode: {mode}")
