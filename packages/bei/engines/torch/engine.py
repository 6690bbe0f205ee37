"""torch: any CPU, and CUDA GPUs; the reference that other engines are compared with."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bei import files
from bei.checkpoint.load import Checkpoint
from bei.engines.base import DEFAULTS, Batch, EngineFacts, EngineOptions
from bei.engines.compute import Compute, Dtype
from bei.engines.cpus import available_cpus
from bei.engines.quantization import gpu_compute, gpu_dtype
from bei.engines.torch.cuda import CUDAStreams
from bei.engines.torch.graphs import LARGEST
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.model import Model
from bei.engines.torch.weights import Weights
from bei.errors import SetupError, one_line


class TorchEngine:
    """One batch at a time on all processors; on a GPU two, so that one is copied while the other computes."""

    fault = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions = DEFAULTS):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device.type == "cuda"
        self._threads = options.threads or available_cpus()
        dtype, reason = _choose(self._device, checkpoint, options)
        compute = _quantized(dtype, checkpoint, options) if on_gpu else Compute(dtype)
        self.facts = EngineFacts(
            name="torch",
            device=torch.cuda.get_device_name() if on_gpu else f"cpu x {self._threads}",
            precision=compute.dtype,
            quantization=compute.quantization,
            reason=reason,
            streams=2 if on_gpu else 1,
            token_budget=_token_budget(self._device, checkpoint.spec.hidden_size),
            processors=0 if on_gpu else self._threads,
        )
        weights = Weights(checkpoint, self._device, compute)
        self._model = Model(checkpoint.spec, weights)
        self._on_gpu = None
        if on_gpu:
            _keep_kernels(options.cache_dir)
            self._on_gpu = CUDAStreams(self._model, self.facts.streams)
            self._warm_up(checkpoint.max_tokens)

    def run(self, batch: Batch) -> np.ndarray:
        if self._on_gpu is not None:
            return self._on_gpu.run(batch)
        torch.set_num_threads(self._threads)  # torch keeps this per calling thread
        with torch.inference_mode():
            inputs = Inputs.of(batch, self._model.spec)
            return inputs.unsorted(self._model(inputs, batch.row_kind).numpy(), batch.row_kind)

    def _warm_up(self, longest: int) -> None:
        """Kernels are compiled for the sizes of the first batch, and for any sizes at the second. The third batch is
        recorded as a graph."""
        length = min(longest, 64)
        try:
            for texts in (2 * LARGEST // length, 3 * LARGEST // length, 1):
                self.run(Batch.pack([[0] * length] * texts))
        except RuntimeError as exc:
            raise SetupError(f"a first batch fails on {self.facts.device}: {one_line(exc, 300)}") from None


def _keep_kernels(cache_dir: Path) -> None:
    """Set the folder of torch's compiled kernels. Its default is in /tmp, under a name that anybody could create
    first."""
    with files.cache(cache_dir, "torch") as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _quantized(dtype: Dtype, checkpoint: Checkpoint, options: EngineOptions) -> Compute:
    """fp8 needs bf16 beside it. Raises SetupError for what the GPU or this engine does not have."""
    compute = gpu_compute(dtype, options.quantization, checkpoint, torch.cuda.get_device_capability())
    if compute.format == "fp4":
        raise SetupError("fp4 is the tensorrt engine's")
    if compute.format != "fp8":
        return compute
    if options.precision not in ("auto", "bf16"):
        asked = options.precision
        raise SetupError(f"the torch engine's fp8 computes beside bf16, not {asked}; leave precision at auto")
    return replace(compute, dtype="bf16")


def _choose(device: torch.device, checkpoint: Checkpoint, options: EngineOptions) -> tuple[Dtype, str]:
    """The dtype and the reason for it. Raises SetupError for a precision that the device does not support."""
    precision = options.precision
    if precision == "int8" or precision == "int4":
        raise SetupError(f"{precision} needs the native engine")
    if device.type == "cuda":
        dtype = gpu_dtype(checkpoint, torch.cuda.get_device_capability(), precision)
        return dtype, f"{dtype} is native to this GPU" if precision == "auto" else "as asked"
    if precision == "fp16":
        raise SetupError("fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision, "as asked"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor multiplies bf16 natively"
    return "fp32", "the processor has no bf16 instructions"


def _token_budget(device: torch.device, hidden_size: int) -> int:
    """A GPU gains from any number of tokens; on a CPU more than these do not fit the cache (benchmarks/README.md)."""
    if device.type == "cuda":
        return 1 << 20
    return 4096 if hidden_size <= 512 else 2048
