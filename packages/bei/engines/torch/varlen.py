"""Attention over packed tokens in one kernel: torch.nn.attention.varlen, FlashAttention where there is CUDA."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from bei.architectures.spec import EncoderSpec
from bei.engines.torch.inputs import Inputs

_NEEDED = {"scale", "window_size"}  # torch 2.11 has them
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8


def find() -> Callable | None:
    """torch's function, where it has what encoders need."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= _NEEDED else None


class Varlen:
    """softmax(q kᵀ * scale) v in each sequence, within the layer's window."""

    def __init__(self, spec: EncoderSpec, attend: Callable):
        self._spec, self._attend = spec, attend
        has = inspect.signature(attend).parameters
        self._groups = spec.heads // spec.kv_heads
        self._shares_keys = "enable_gqa" in has
        # One split, so that a sequence is summed in the same order whatever stands beside it.
        self._same_order = {"num_splits": 1} if "num_splits" in has else {}

    @staticmethod
    def expresses(spec: EncoderSpec, device: torch.device, dtype: torch.dtype) -> bool:
        fits = spec.head_size <= _LARGEST_HEAD and spec.head_size % _HEAD_MULTIPLE == 0
        plain = spec.relative_bias is None and spec.soft_cap is None
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return ampere and dtype in (torch.bfloat16, torch.float16) and fits and plain

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs, window: int | None) -> Tensor:
        """q: [T, heads, size]; k, v: [T, kv_heads, size] → [T, heads * size]; rows after the last token are any."""
        if self._groups > 1 and not self._shares_keys:
            k, v = (x.repeat_interleave(self._groups, 1) for x in (k, v))
        shared = {"enable_gqa": True} if self._groups > 1 and self._shares_keys else {}
        before = -1 if window is None else window
        after = 0 if self._spec.causal else before
        cu_seqlens, longest = inputs["cu_seqlens"], inputs.longest
        context = self._attend(
            *(q, k, v, cu_seqlens, cu_seqlens, longest, longest),
            scale=self._spec.attention_scale,
            window_size=(before, after),
            **shared,
            **self._same_order,
        )
        return context.flatten(1)
