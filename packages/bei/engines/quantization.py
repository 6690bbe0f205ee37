"""The dtype and the quantization of a GPU, by its capability and the `quantization_type`."""

from typing import Literal, cast

from bei.architectures.shapes import linear_parts, linear_sizes
from bei.checkpoint.load import Checkpoint
from bei.engines.compute import Compute, Dtype, Quantization
from bei.errors import SetupError
from bei.settings.block import QuantizationType
from bei.settings.gpus import AMPERE, NEEDS, Capability, format_of

_FEEDFORWARD = ("up", "down")
_MULTIPLE = 16  # of both sizes of a matrix, for products of eight bits


def gpu_compute(dtype: Dtype, asked: QuantizationType, checkpoint: Checkpoint, capability: Capability) -> Compute:
    """A checkpoint that is quantized already stays so where the GPU can, whatever is asked. Raises SetupError for what
    the GPU or the engine does not have."""
    stored = checkpoint.tensors.quantized_names
    if asked is QuantizationType.NO_QUANT:
        if not stored or capability < NEEDS["fp8"].capability:
            return Compute(dtype)
        return Compute(dtype, "fp8", tuple(name.removesuffix(".weight") for name in stored))
    kind = format_of(asked)
    if kind is None:
        raise SetupError(f"quantization_type {asked}: no engine has it; set fp8 or fp4")
    need = NEEDS[kind]
    if capability < need.capability:
        raise SetupError(
            f"quantization_type {asked}: {kind.upper()} quantization is only supported on {need.gpus}; "
            f"this GPU has {capability[0]}{capability[1]}"
        )
    products = _products(checkpoint, mlp_only=asked.value.endswith("_mlp_only"))
    return Compute(dtype, cast("Quantization", asked.value), products)


def gpu_dtype(checkpoint: Checkpoint, capability: Capability, precision: Dtype | Literal["auto"]) -> Dtype:
    """The `precision`, or for auto the fast one. Raises SetupError for fp16 if the model's values exceed its range."""
    if precision == "fp16" and checkpoint.spec.wide_range:
        raise SetupError("precision fp16: the values of this model exceed its range; set bf16 or fp32")
    return fast_dtype(checkpoint, capability) if precision == "auto" else precision


def fast_dtype(checkpoint: Checkpoint, capability: Capability) -> Dtype:
    """fp16 for encoders that are stored in it, and on GPUs before Ampere; else bf16. Causal models need bf16: their
    intermediate values exceed the range of fp16. Those of a model with a wide range do so on every text: before Ampere
    it runs in fp32."""
    if checkpoint.spec.wide_range:
        return "fp32" if capability < AMPERE else "bf16"
    stored_fp16 = checkpoint.dtype == "float16" and not checkpoint.spec.causal
    return "fp16" if stored_fp16 or capability < AMPERE else "bf16"


def _products(checkpoint: Checkpoint, mlp_only: bool) -> tuple[str, ...]:
    spec, found = checkpoint.spec, []
    for i, layer in enumerate(spec.layers):
        sizes = linear_sizes(spec, layer)
        for name, part in linear_parts(spec, i):
            if not any(n % _MULTIPLE for n in sizes[part]) and (not mlp_only or part in _FEEDFORWARD):
                found.append(f"layers.{i}.{name}")
    return tuple(found)
