"""The GPU that each quantization needs, and the capability of each GPU that a config may name."""

from dataclasses import dataclass
from typing import Literal

Capability = tuple[int, int]
"""A GPU's compute capability."""
Format = Literal["fp8", "fp4"]

AMPERE: Capability = (8, 0)
CAPABILITIES: dict[str, Capability] = {
    "V100": (7, 0),
    "T4": (7, 5),
    **dict.fromkeys(("A100", "A100_40GB"), (8, 0)),
    "A10G": (8, 6),
    **dict.fromkeys(("L4", "L40S"), (8, 9)),
    **dict.fromkeys(("H100", "H100_40GB", "H200"), (9, 0)),
}
"""Of `resources.accelerator`; newer ones have everything."""


@dataclass(frozen=True)
class Need:
    """The least capability, and which GPUs have it, in words."""

    capability: Capability
    gpus: str


NEEDS: dict[Format, Need] = {
    "fp8": Need((8, 9), "L4, H100, H200, B200 or newer (CUDA_COMPUTE>=89)"),
    "fp4": Need((10, 0), "B200 / Blackwell or newer (CUDA_COMPUTE>=100)"),
}


def format_of(quantization_type: str) -> Format | None:
    """The numbers of a quantization_type that engines have; None for others."""
    return next((format for format in NEEDS if quantization_type.startswith(format)), None)
