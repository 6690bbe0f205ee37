"""Attention over packed tokens in one kernel: torch.nn.attention.varlen (FlashAttention on CUDA)."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bei.architectures.spec import EncoderSpec
from bei.engines.torch.inputs import Inputs

log = logging.getLogger("bei")

_NEEDED = {"scale", "window_size"}  # torch 2.11 has them
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8


def find() -> Callable[..., Any] | None:
    """torch's function, if it supports what encoders need."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= _NEEDED else None


class Varlen:
    """softmax(q kᵀ * scale) v in each sequence, within the layer's window."""

    def __init__(self, spec: EncoderSpec, attend: Callable[..., Any], options: dict[str, int]):
        """`options` are of `attend`."""
        self._spec, self._attend, self._options = spec, attend, options
        self._groups = spec.heads // spec.kv_heads
        self._shares_keys = "enable_gqa" in inspect.signature(attend).parameters

    @classmethod
    def of(cls, spec: EncoderSpec, device: torch.device, dtype: torch.dtype) -> "Varlen | None":
        """None if no kernel computes this spec's attention here; each is tried on two tokens."""
        attend = find() if cls.expresses(spec, device, dtype) else None
        if attend is None:
            return None
        # One split, so that a sequence is summed in the same order whatever stands beside it.
        one_split = [{"num_splits": 1}] if "num_splits" in inspect.signature(attend).parameters else []
        for options in (*one_split, {}):
            found = cls(spec, attend, options)
            try:
                found._try(device, dtype)
            except (RuntimeError, ValueError) as exc:
                log.warning("packed attention with %s does not run here: %s", options or "no options", exc)
                continue
            return found
        return None

    @staticmethod
    def expresses(spec: EncoderSpec, device: torch.device, dtype: torch.dtype) -> bool:
        fits = spec.head_size <= _LARGEST_HEAD and spec.head_size % _HEAD_MULTIPLE == 0
        plain = spec.relative_bias is None and spec.soft_cap is None and not spec.sinks
        plain = plain and not any(layer.heads for layer in spec.layers)
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return ampere and dtype in (torch.bfloat16, torch.float16) and fits and plain

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs, window: int | None) -> Tensor:
        """q: [T, heads, size]; k, v: [T, kv_heads, size] → [T, heads * size]; rows after the last token are
        undefined."""
        return self._run(q, k, v, inputs["cu_seqlens"], inputs.longest, window)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int | None) -> Tensor:
        if self._groups > 1 and not self._shares_keys:
            k, v = (x.repeat_interleave(self._groups, 1) for x in (k, v))
        shared = {"enable_gqa": True} if self._groups > 1 and self._shares_keys else {}
        before = -1 if window is None else window
        after = 0 if self._spec.causal else before
        context: Tensor = self._attend(
            *(q, k, v, cu_seqlens, cu_seqlens, longest, longest),
            scale=self._spec.attention_scale,
            window_size=(before, after),
            **shared,
            **self._options,
        )
        return context.flatten(1)

    def _try(self, device: torch.device, dtype: torch.dtype) -> None:
        spec = self._spec
        q, kv = (torch.ones(2, n, spec.head_size, dtype=dtype, device=device) for n in (spec.heads, spec.kv_heads))
        cu_seqlens = torch.tensor([0, 2], dtype=torch.int32, device=device)
        for window in {layer.window for layer in spec.layers}:
            self._run(q, kv, kv, cu_seqlens, 2, window)
