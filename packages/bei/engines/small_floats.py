"""Floating-point numbers of eight and four bits, the operands of TensorRT's and CUDA's products.

fp8 is E4M3 (arXiv:2209.05433), whose largest number is 448. fp4 is NVFP4 (NVIDIA, "Introducing NVFP4", 2025): E2M1,
whose largest is 6, times an E4M3 scale for each 16 numbers of a row, times one float32 scale.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from bei.checkpoint.tensors import Tensors

BLOCK = 16
_FP8_MAX, _FP4_MAX = 448.0, 6.0
_TINY = 1e-12  # the least peak: a row of zeros is zeros at any scale


@dataclass(frozen=True)
class FP4:
    """nibbles: uint8[rows, columns / 2], the first of two in the low bits; scales: float8_e4m3fn[rows, columns / 16];
    a number is its E2M1 value * its block's scale * `scale`."""

    nibbles: np.ndarray
    scales: np.ndarray
    scale: float


def fp8_scale(peak: float) -> float:
    """The scale of fp8 for numbers up to `peak`."""
    return max(peak, _TINY) / _FP8_MAX


def fp8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[rows, columns] → float8_e4m3fn of that shape, and float32[rows]: a scale for each row."""
    weight = weight.astype(np.float32)
    scales = np.maximum(np.abs(weight).max(1), _TINY) / np.float32(_FP8_MAX)
    return (weight / scales[:, None]).astype(ml_dtypes.float8_e4m3fn), scales


def stored_fp8(tensors: Tensors, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in fp8 and the scale of each row; those of the checkpoint if it is quantized already."""
    return tensors.quantized(name) or fp8(tensors[name])


def fp4_scale(peak: float) -> float:
    """The scale of the blocks' scales: a block that reaches `peak` has the largest scale."""
    return max(peak, _TINY) / (_FP8_MAX * _FP4_MAX)


def fp4(weight: np.ndarray) -> FP4:
    """[rows, columns], columns a multiple of 16. Rounded to nearest, ties to even."""
    weight = weight.astype(np.float32)
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    scale = fp4_scale(float(np.abs(weight).max()))
    scales = (np.abs(blocks).max(2) / _FP4_MAX / scale).astype(ml_dtypes.float8_e4m3fn)
    units = scales.astype(np.float32)[:, :, None] * scale
    numbers = np.divide(blocks, units, out=np.zeros_like(blocks), where=units > 0)
    codes = numbers.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(rows, columns // 2, 2)
    return FP4(codes[..., 0] | codes[..., 1] << 4, scales, scale)


def unpack_fp4(packed: FP4) -> np.ndarray:
    """The numbers of `packed`: float32[rows, columns]."""
    codes = np.stack([packed.nibbles & 15, packed.nibbles >> 4], -1).reshape(len(packed.nibbles), -1, BLOCK)
    numbers = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scaled: np.ndarray = numbers * packed.scales.astype(np.float32)[..., None] * packed.scale
    return scaled.reshape(len(codes), -1)
