"""Functions between two matrix products, each compiled by torch into one kernel on a GPU.

On a CPU they run as they are, and on a GPU too where torch's compiler does not work (it needs Triton).
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("bei")

_COMPILES = {"cuda"}


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose first arguments are tensors, compiled at the first call on a GPU. Sizes that change between
    calls become variables of the kernel at the second call."""
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(x: Tensor, *args: Any) -> Any:
        nonlocal compiled
        if x.device.type not in _COMPILES:
            return function(x, *args)
        compiled = compiled or torch.compile(function)
        try:
            return compiled(x, *args)
        except torch._dynamo.exc.TorchDynamoException as exc:
            first = str(exc).strip().partition("\n")[0]
            log.warning("torch does not compile %s here, so it runs unfused: %s", function.__name__, first)
            compiled = function
            return function(x, *args)

    return call
