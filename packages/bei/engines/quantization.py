"""The GPU that each `quantization_type` needs, and the precisions of a GPU."""

from dataclasses import dataclass

from bei.architectures.shapes import linear_sizes
from bei.checkpoint.load import Checkpoint
from bei.errors import SetupError
from bei.settings.block import QuantizationType
from bei.settings.gpus import AMPERE, NEEDS, Capability, Format, format_of

_FEEDFORWARD = ("up", "down")
_MULTIPLE = 16  # of both sizes of a matrix, for products of eight bits


@dataclass(frozen=True)
class Quantization:
    """The products (`layers.3.up`) that run in `format`. `name` is the type as the settings have it, None for none."""

    name: str | None = None
    format: Format | None = None
    products: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: QuantizationType, checkpoint: Checkpoint, capability: Capability) -> "Quantization":
        """A checkpoint that is quantized already stays so where the GPU can, whatever is asked. Raises SetupError for
        what the GPU or the engine does not have."""
        stored = checkpoint.tensors.quantized_names
        if asked is QuantizationType.NO_QUANT:
            if not stored or capability < NEEDS["fp8"].capability:
                return cls()
            return cls("fp8", "fp8", tuple(name.removesuffix(".weight") for name in stored))
        kind = format_of(asked)
        if kind is None:
            raise SetupError(f"quantization_type {asked}: no engine has it; set fp8 or fp4")
        need = NEEDS[kind]
        if capability < need.capability:
            raise SetupError(
                f"quantization_type {asked}: {kind.upper()} quantization is only supported on {need.gpus}; "
                f"this GPU has {capability[0]}{capability[1]}"
            )
        return cls(asked.value, kind, _products(checkpoint, mlp_only=asked.value.endswith("_mlp_only")))


def fast_precision(checkpoint: Checkpoint, capability: Capability) -> str:
    """fp16 for encoders that are stored in it, and on GPUs before Ampere; else bf16. Causal models need bf16: their
    intermediate values exceed the range of fp16."""
    stored_fp16 = checkpoint.dtype == "float16" and not checkpoint.spec.causal
    return "fp16" if stored_fp16 or capability < AMPERE else "bf16"


def _products(checkpoint: Checkpoint, mlp_only: bool) -> tuple[str, ...]:
    fitting = [part for part, sizes in linear_sizes(checkpoint.spec).items() if not any(n % _MULTIPLE for n in sizes)]
    parts = [part for part in fitting if not mlp_only or part in _FEEDFORWARD]
    return tuple(f"layers.{i}.{part}" for i in range(len(checkpoint.spec.layers)) for part in parts)
