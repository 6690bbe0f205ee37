"""Weights in the kernels' layout (cpp/kernel/linear.h): panels of columns, in which the operands of one instruction are
adjacent."""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from bei.architectures.shapes import (
    DECODER_NORMS,
    bottleneck_norms,
    bottleneck_sizes,
    decoder_sizes,
    layer_input_sizes,
    linear_parts,
)
from bei.architectures.spec import Dense, EncoderSpec, HeadLayer, Layer, LayerNorm, Norm
from bei.checkpoint.load import Checkpoint
from bei.engines.compute import Compute, Dtype, Operands
from bei.engines.native import positions
from bei.engines.native.abi import Layout, Layouts
from bei.engines.relative_bias import bias_by_distance

_TYPES: Mapping[Operands, DTypeLike] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "int8": np.int8}
Arrays = Iterator[tuple[str, np.ndarray]]
Exact = Callable[[str], np.ndarray]


def pack_checkpoint(
    checkpoint: Checkpoint,
    compute: Compute,
    layouts: Layouts,
    input_peaks: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Arrays:
    """Every array of the plan by name, one at a time, so that at most one matrix is in memory. `input_peaks` come from
    calibrate.py, for int8."""
    spec, tensors = checkpoint.spec, checkpoint.tensors

    def exact(name: str) -> np.ndarray:
        return np.ascontiguousarray(tensors[name], np.float32)

    yield from _tables(spec, tensors, exact)
    for name, norm in norms(spec):
        yield f"{name}.weight", exact(f"{name}.weight") + np.float32(norm.offset)
        if norm.bias:
            yield f"{name}.bias", exact(f"{name}.bias")
    for name, of in operands(spec, compute):
        weight = _matrix(spec, name, exact)
        bias: np.ndarray | None = exact(f"{name}.bias") if f"{name}.bias" in tensors else None
        if _is_gated(spec, name):
            weight = interleave(weight, layouts[of].lanes)
            bias = None if bias is None else interleave(bias, layouts[of].lanes)
        packed = pack_linear(weight, bias, of, layouts[of], input_peaks.get(_read_by(name)))
        for part, array in packed.items():
            yield f"{name}.{part}", array


def _tables(spec: EncoderSpec, tensors: Mapping[str, np.ndarray], exact: Exact) -> Arrays:
    """The tables of the embeddings and of positions, the taps of convolutions, sinks, biases of mixtures, and
    scales."""
    yield "embeddings.token", _token_table(tensors["embeddings.token"])
    if spec.position_offset is not None:
        yield "embeddings.position", exact("embeddings.position")[spec.position_offset :]
    if spec.decoder:
        yield "decoder.position", exact("decoder.position")[spec.position_offset or 0 :]
    if spec.token_types:
        yield "embeddings.token_type", exact("embeddings.token_type")
    for name in spec.bias_names:
        yield name, bias_by_distance(spec, exact(name) if name in tensors else None)
    yield from positions.vectors(spec, exact)
    for i, layer in enumerate(spec.layers):
        yield from (
            (f"layers.{i}.{name}", array) for name, array in _tables_of_layer(spec, layer, f"layers.{i}", exact)
        )


def _tables_of_layer(spec: EncoderSpec, layer: Layer, name: str, exact: Exact) -> Arrays:
    if layer.experts and layer.experts.output_bias:
        yield "experts.bias", exact(f"{name}.experts.bias")
    if spec.sinks:
        yield "sinks", exact(f"{name}.sinks")
    if spec.layer_inputs:
        yield "scale", exact(f"{name}.scale")
    if spec.value_norm:
        yield "value_norm.weight", np.ones(spec.of_layer(layer).head_size, np.float32)
    if layer.convolution:
        yield "taps", np.ascontiguousarray(exact(f"{name}.taps.weight")[:, 0].T)


def _matrix(spec: EncoderSpec, name: str, exact: Exact) -> np.ndarray:
    """float32[outputs, inputs]"""
    if name == "convolution":
        return _convolution(exact("convolution.weight"))
    if spec.layer_inputs and name.endswith(".input_project"):
        i, size = int(name.split(".")[1]), spec.layer_inputs.size
        return exact("layer_inputs.project.weight")[i * size : (i + 1) * size]
    return exact(f"{name}.weight")


def _convolution(kernel: np.ndarray) -> np.ndarray:
    """[hidden, hidden / groups, taps] → [hidden, taps * hidden]: zeros in place of the other groups."""
    hidden, width, taps = kernel.shape
    whole = np.zeros((hidden, taps, hidden), np.float32)
    for row in range(hidden):
        first = row // width * width
        whole[row, :, first : first + width] = kernel[row].T
    return whole.reshape(hidden, -1)


def _is_gated(spec: EncoderSpec, name: str) -> bool:
    """Whether a matrix has gates, and then gated values."""
    if not name.endswith(".up"):
        return False
    if name.startswith("decoder."):
        return spec.gated
    layer = spec.layers[int(name.split(".")[1])]
    if layer.bottleneck:
        return False
    return spec.gated if layer.experts is None else layer.experts.gated


def _read_by(name: str) -> str:
    """The product of whose inputs the peaks are known: all experts read the same rows, and so do the products at the
    beginning of a layer with a bottleneck."""
    return re.sub(r"\.(enter|shared|value)$", ".qkv", re.sub(r"\.experts\.\d+", "", name))


def _token_table(stored: np.ndarray) -> np.ndarray:
    """A table in bfloat16 is kept as its bits: that is exact, and halves what may be a third of the model."""
    if stored.dtype == ml_dtypes.bfloat16:
        return np.ascontiguousarray(stored).view(np.uint16)
    return np.ascontiguousarray(stored, np.float32)


def interleave(rows: np.ndarray, lanes: int) -> np.ndarray:
    """rows: [2 * n, ...], n gates and then n gated values → groups of `lanes` gates and `lanes` gated values, in turn.
    If n is not a multiple of `lanes`, the last groups are padded with zeros."""
    halves = rows.reshape(2, len(rows) // 2, *rows.shape[1:])
    padded = np.pad(halves, [(0, 0), (0, -halves.shape[1] % lanes)] + [(0, 0)] * (rows.ndim - 1))
    interleaved = padded.reshape(2, -1, lanes, *rows.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(interleaved.reshape(-1, *rows.shape[1:]))


def norms(spec: EncoderSpec) -> Iterator[tuple[str, Norm]]:
    if spec.embedding_norm:
        yield "embeddings.norm", spec.norm
    if spec.convolution:
        yield "convolution.norm", spec.norm
    if spec.layer_inputs:
        yield "layer_inputs.norm", spec.norm
    for i in range(len(spec.layers)):
        yield from ((f"layers.{i}.{name}", norm) for name, norm in _norms_of_layer(spec, spec.layers[i]))
    if spec.final_norm:
        yield "final_norm", spec.norm
    if spec.decoder:
        yield "decoder.norm", spec.norm
        layers = range(spec.decoder.layers)
        yield from ((f"decoder.layers.{i}.{place}", spec.norm) for i in layers for place in DECODER_NORMS)
    for name, head_layer in head_layers(spec):
        if isinstance(head_layer, LayerNorm):
            yield name, Norm("layer", head_layer.eps, head_layer.bias)


def _norms_of_layer(spec: EncoderSpec, layer: Layer) -> Iterator[tuple[str, Norm]]:
    yield from ((place, spec.norm) for place in layer.norms)
    if spec.layer_inputs:
        yield "input_norm", spec.norm
    if layer.bottleneck:
        yield from ((name, spec.norm) for name in bottleneck_norms(spec, layer.bottleneck))
    elif not layer.convolution:
        yield from ((part, spec.norm_of_heads) for part in spec.qk_norm_sizes)


def compute_of(spec: EncoderSpec, precision: Dtype | Literal["int8"]) -> Compute:
    """In int8 every large product has int8, and bf16 lies between them."""
    if precision == "int8":
        return Compute("bf16", "int8", tuple(_large(spec)))
    return Compute(precision)


def operands(spec: EncoderSpec, compute: Compute) -> Iterator[tuple[str, Operands]]:
    """Each matrix, and the numbers that it is stored in."""
    yield from ((name, compute.operands(name)) for name in _large(spec))
    yield from ((f"layers.{i}.router", "fp32") for i, layer in enumerate(spec.layers) if layer.experts)
    for name, head_layer in head_layers(spec):
        if isinstance(head_layer, Dense) and name not in spec.wide_layers:
            yield name, "fp32"
        if isinstance(head_layer, Dense) and head_layer.projects:
            yield f"{name}.residual", "fp32"


def _large(spec: EncoderSpec) -> Iterator[str]:
    if spec.projects:
        yield "embeddings.project"
    if spec.convolution:
        yield "convolution"
    for i, layer in enumerate(spec.layers):
        yield from (f"layers.{i}.{name}" for name, _ in linear_parts(spec, i))
        if layer.bottleneck:
            yield from (f"layers.{i}.{name}" for name in bottleneck_sizes(spec, layer.bottleneck))
        yield from (f"layers.{i}.{name}" for name in layer_input_sizes(spec))
    for i in range(spec.decoder.layers if spec.decoder else 0):
        yield from (f"decoder.layers.{i}.{name}" for name in decoder_sizes(spec))
    yield from (name for name, _ in head_layers(spec) if name in spec.wide_layers)


def head_layers(spec: EncoderSpec) -> Iterator[tuple[str, HeadLayer]]:
    for part in ("token_head", "head"):
        yield from ((f"{part}.{i}", layer) for i, layer in enumerate(getattr(spec, part)))


def pack_linear(
    weight: np.ndarray,
    bias: np.ndarray | None,
    operands: Operands,
    layout: Layout,
    input_peaks: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """weight: float32[outputs, inputs] → panels (flat), bias float32[columns], and for int8 the scale of each column
    and the sum of its bytes. `columns` is `outputs` rounded up to whole vectors; added columns are zero."""
    packed = {}
    if input_peaks is not None:
        weight, packed["input_scales"] = _smooth(weight, input_peaks)
    outputs, inputs = weight.shape
    columns, filled = _round_up(outputs, layout.lanes), _round_up(inputs, layout.word_multiple)
    padded = np.zeros((columns, filled), np.float32)
    padded[:outputs, :inputs] = weight
    packed["bias"] = np.zeros(columns, np.float32)
    if bias is not None:
        packed["bias"][:outputs] = bias
    if layout.largest:
        packed["scales"] = scales = _scales(padded, layout)
        padded = np.rint(padded / scales[:, None])
        packed["sums"] = padded.sum(1)
    packed["panels"] = _panels(padded.astype(_TYPES[operands], copy=False), layout)
    return packed


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _scales(weight: np.ndarray, layout: Layout) -> np.ndarray:
    """float32[columns]: the least with which each row of the weight is within the layout's bounds."""
    scales: np.ndarray = np.maximum(np.abs(weight).max(1), 1e-12) / np.float32(layout.largest)
    if layout.largest_pair:
        scales = np.maximum(scales, _largest_pair(weight) / np.float32(layout.largest_pair))
    return scales


def _panels(matrix: np.ndarray, layout: Layout) -> np.ndarray:
    """matrix: [columns, inputs] → flat: panels of columns, of which the last may be narrower; in each the inputs of a
    group lie together, column by column."""
    groups = matrix.reshape(len(matrix), -1, layout.row_group)
    panels = [groups[at : at + layout.panel] for at in range(0, len(groups), layout.panel)]
    return np.concatenate([panel.swapaxes(0, 1).ravel() for panel in panels])


def _largest_pair(weight: np.ndarray) -> np.ndarray:
    """For each row, the largest sum of two adjacent weights of one sign: one instruction adds their products."""
    pairs = weight.reshape(len(weight), -1, 2)
    reach: np.ndarray = np.maximum(np.maximum(pairs, 0).sum(2).max(1), np.maximum(-pairs, 0).sum(2).max(1))
    return reach


def _smooth(weight: np.ndarray, input_peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scaled weight and the scales of its inputs; their product is unchanged. Inputs with high peaks are scaled
    down, so that the others keep more of a byte's range (SmoothQuant, arXiv:2211.10438, eq. 4, with alpha = 1/2)."""
    strength = np.sqrt(np.maximum(input_peaks, 1e-3) / np.maximum(np.abs(weight).max(0), 1e-5))
    strength /= strength.mean()
    return weight * strength, 1 / strength
