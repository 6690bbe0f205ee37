"""What stands between two products, each in one kernel on a GPU: functions that torch compiles there.

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
    """`function`, of tensors first, compiled when it is first called on a GPU. Sizes that change from call to call
    become variables of the kernel at the second one."""
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
