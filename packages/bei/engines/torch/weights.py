"""A checkpoint's tensors on a device: matrices in the engine's precision, everything else exact.

Only the products are rounded to 16 bits. Embeddings, norms, biases and the residual stay in float32.
With 16-bit biases and residual the worst cosine of MiniLM falls from 0.99995 to 0.99987.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bei.checkpoint.load import Checkpoint
from bei.engines.compute import Compute, Dtype

_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Weights:
    """Reads by our names (architectures/spec.py)."""

    checkpoint: Checkpoint
    device: torch.device
    compute: Compute

    @property
    def dtype(self) -> torch.dtype:
        """Of what lies between two products."""
        return _DTYPES[self.compute.dtype]

    def matrix(self, name: str) -> Tensor:
        """In the engine's precision."""
        return _tensor(self.checkpoint.tensors[name]).to(self.device, self.dtype)

    def eight_bits(self, name: str) -> tuple[Tensor, Tensor]:
        """float8_e4m3fn[outputs, inputs] and float32[outputs], the scale of each row."""
        stored = self.checkpoint.tensors.quantized(name)
        if stored is None:
            return float8_rows(self.exact(name))
        numbers, scales = (torch.from_numpy(array) for array in (stored[0].view(np.uint8), stored[1]))
        return numbers.view(torch.float8_e4m3fn).to(self.device), scales.to(self.device)

    def stored(self, name: str) -> Tensor:
        """As it is stored."""
        return _tensor(self.checkpoint.tensors[name]).to(self.device)

    def exact(self, name: str) -> Tensor:
        """In float32."""
        return _tensor(self.checkpoint.tensors[name]).to(self.device, torch.float32)


def float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] → float8_e4m3fn of that shape, and float32[rows], the scale of each row."""
    scales = x.abs().amax(1).float().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (x / scales[:, None]).to(torch.float8_e4m3fn), scales


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor of the array; bfloat16 is passed as bits, because numpy has no such type."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
