"""torch: any CPU, and CUDA where there is one; the reference that other engines are held against."""

from pathlib import Path

import numpy as np
import torch

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch
from bei.engines.cpus import available_cpus
from bei.engines.torch.encoder import Encoder
from bei.engines.torch.head import Head
from bei.engines.torch.layout import Layout
from bei.engines.torch.weights import Weights
from bei.errors import SetupError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """One batch at a time on all processors, or on the GPU."""

    name = "torch"
    streams = 1
    shares_prefixes = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "auto",
        threads: int | None = None,
        cache_dir: Path | None = None,
    ):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._threads = threads or available_cpus()
        self.precision, self.reason = _choose(self._device, precision)
        self.device = torch.cuda.get_device_name() if self._device.type == "cuda" else f"cpu x {self._threads}"
        self.token_budget = _token_budget(self._device, checkpoint.spec.hidden_size)
        weights = Weights(checkpoint, self._device, _DTYPES[self.precision])
        self._encoder, self._head = Encoder(checkpoint.spec, weights), Head(checkpoint.spec, weights)

    def run(self, batch: Batch) -> np.ndarray:
        torch.set_num_threads(self._threads)  # torch keeps this per calling thread
        with torch.inference_mode():
            layout = Layout.of(batch)
            states = self._encoder(batch, layout)
            if batch.rows == "tokens":
                return layout.unsort_tokens(self._head.tokens(states)).cpu().numpy()
            return layout.unsort_rows(self._head.rows(states, batch, layout)).cpu().numpy()


def _choose(device: torch.device, precision: str) -> tuple[str, str]:
    """The precision and the reason for it. Raises SetupError for one that the device does not have."""
    if precision == "int8":
        raise SetupError("int8 is the native engine's")
    if device.type == "cuda":
        fast = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return (fast, f"{fast} is native to this GPU") if precision == "auto" else (precision, "as asked")
    if precision == "fp16":
        raise SetupError("fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision, "as asked"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor multiplies bf16 natively"
    return "fp32", "the processor has no bf16 instructions"


def _token_budget(device: torch.device, hidden_size: int) -> int:
    """A GPU wants all it can get; on a CPU more tokens than these fall out of cache (benchmarks/README.md)."""
    if device.type == "cuda":
        return 1 << 20
    return 4096 if hidden_size <= 512 else 2048
