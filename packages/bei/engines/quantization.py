"""The GPU that each `quantization_type` needs, and the precisions of a GPU."""

from dataclasses import dataclass
from typing import Literal

from bei.architectures.shapes import linear_sizes
from bei.checkpoint.load import Checkpoint
from bei.errors import SetupError
from bei.settings.block import QuantizationType

Capability = tuple[int, int]
"""A GPU's compute capability."""

_FEEDFORWARD = ("up", "down")
_NEEDS: dict[Literal["fp8", "fp4"], tuple[Capability, str]] = {
    "fp8": ((8, 9), "L4, H100, H200, B200 or newer (CUDA_COMPUTE>=89)"),
    "fp4": ((10, 0), "B200 / Blackwell or newer (CUDA_COMPUTE>=100)"),
}
_MULTIPLE = 16  # of both sizes of a matrix, for products of eight bits


@dataclass(frozen=True)
class Quantization:
    """The products (`layers.3.up`) that run in `format`. `name` is the type as the settings have it, None for none."""

    name: str | None = None
    format: Literal["fp8", "fp4"] | None = None
    products: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: QuantizationType, checkpoint: Checkpoint, capability: Capability) -> "Quantization":
        """A checkpoint that is quantized already stays so where the GPU can, whatever is asked. Raises SetupError for
        what the GPU or the engine does not have."""
        stored = checkpoint.tensors.quantized_names
        if asked is QuantizationType.NO_QUANT:
            if not stored or capability < _NEEDS["fp8"][0]:
                return cls()
            return cls("fp8", "fp8", tuple(name.removesuffix(".weight") for name in stored))
        kind = next((kind for kind in _NEEDS if asked.value.startswith(kind)), None)
        if kind is None:
            raise SetupError(f"quantization_type {asked}: no engine has it; set fp8 or fp4")
        least, which = _NEEDS[kind]
        if capability < least:
            raise SetupError(
                f"quantization_type {asked}: {kind.upper()} quantization is only supported on {which}; this GPU has "
                f"{capability[0]}{capability[1]}"
            )
        return cls(asked.value, kind, _products(checkpoint, mlp_only=asked.value.endswith("_mlp_only")))


def fast_precision(checkpoint: Checkpoint, capability: Capability) -> str:
    """fp16 for encoders that are stored in it, and on GPUs before Ampere; else bf16. Causal models need bf16: their
    intermediate values exceed the range of fp16."""
    stored_fp16 = checkpoint.dtype == "float16" and not checkpoint.spec.causal
    return "fp16" if stored_fp16 or capability < (8, 0) else "bf16"


def _products(checkpoint: Checkpoint, mlp_only: bool) -> tuple[str, ...]:
    fitting = [part for part, sizes in linear_sizes(checkpoint.spec).items() if not any(n % _MULTIPLE for n in sizes)]
    parts = [part for part in fitting if not mlp_only or part in _FEEDFORWARD]
    return tuple(f"layers.{i}.{part}" for i in range(len(checkpoint.spec.layers)) for part in parts)
