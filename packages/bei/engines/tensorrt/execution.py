"""A plan on the GPU: torch keeps the memory and the streams, TensorRT runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bei.engines.tensorrt.api import API
from bei.engines.tensorrt.runner import Call
from bei.engines.torch.inputs import to_pinned
from bei.errors import SetupError

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class GPU:
    """The GPU for which a plan is built. `driver`: the branch of its driver ("580"); empty if unknown."""

    name: str
    capability: tuple[int, int]
    driver: str


class CUDAExecution:
    """One context on its own stream, so that one batch is copied while another is computed."""

    def __init__(self, engine: Any) -> None:
        """engine: an ICudaEngine"""
        self._context, self._stream = engine.create_execution_context(), torch.cuda.Stream()
        if self._context is None:
            raise SetupError("TensorRT has no memory for its activations; set a smaller max_num_tokens")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name).name == "INPUT")
        self._outputs = tuple(name for name in names if name not in self.inputs)

    def run(self, calls: Sequence[Call], output: str) -> list[np.ndarray]:
        with torch.cuda.stream(self._stream):
            pairs = [self._enqueue(call, output) for call in calls]
        self._stream.synchronize()
        return [host.numpy() for host, _ in pairs]

    def _enqueue(self, call: Call, output: str) -> tuple[Tensor, list[Tensor]]:
        """The pinned memory for the answer, and the objects that must live until the answer is there."""
        context, stream = self._context, self._stream.cuda_stream
        other = context.active_optimization_profile != call.profile
        if other and not context.set_optimization_profile_async(call.profile, stream):
            raise RuntimeError(f"TensorRT refuses profile {call.profile}")
        staged, views = to_pinned(call.inputs, pin=True)
        uploaded = staged.to("cuda", non_blocking=True)
        for name, array in call.inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise RuntimeError(f"TensorRT refuses {name} of shape {array.shape}")
            context.set_tensor_address(name, uploaded.data_ptr() + views.offsets[name])
        found = {name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in self._outputs}
        for name, tensor in found.items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream):
            raise RuntimeError("TensorRT did not start; its reason is in the log")
        host = torch.empty(found[output].shape, pin_memory=True)
        host.copy_(found[output], non_blocking=True)
        return host, [staged, uploaded, *found.values()]


def open_plan(api: API, content: np.ndarray, streams: int) -> list[CUDAExecution]:
    """uint8[…], the bytes of a plan → one execution per stream. Raises SetupError if the plan does not fit this GPU."""
    engine = api.runtime().deserialize_cuda_engine(content.data)
    if engine is None:
        raise SetupError(f"{api.name} cannot load its plan; the reason is in the log")
    return [CUDAExecution(engine) for _ in range(streams)]


def gpu() -> GPU:
    """Raises SetupError where there is none."""
    if not torch.cuda.is_available():
        raise SetupError("this machine has no NVIDIA GPU that CUDA can use")
    found = re.search(r"Kernel Module.*?\s(\d+)\.", _DRIVER.read_text()) if _DRIVER.exists() else None
    return GPU(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), found[1] if found else "")
