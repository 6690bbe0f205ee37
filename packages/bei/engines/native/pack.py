"""The parts of a native engine's plan, from a checkpoint: matrices in panels, tables, norms and biases."""

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

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
from bei.checkpoint.tensors import Pieces
from bei.engines import plan
from bei.engines.compute import Compute, Dtype, Integers, Operands
from bei.engines.native import positions
from bei.engines.native.abi import Layouts
from bei.engines.native.panels import Rows, interleave, pack_linear, pack_table
from bei.engines.plan import Part
from bei.engines.relative_bias import bias_by_distance

Arrays = Iterator[tuple[str, np.ndarray]]
Exact = Callable[[str], np.ndarray]
Peaks = Mapping[str, np.ndarray]
PEAKED = ("int8", "int4")
"""The operands whose rounding depends on the inputs of a product (calibrate.py)."""
_MOST_ROTATED = 64  # 512 spread outliers no better


@dataclass(frozen=True)
class Packer:
    """`library` packs for the level of `layouts`, which need not be its own."""

    library: ctypes.CDLL
    layouts: Layouts

    def parts(
        self, checkpoint: Checkpoint, compute: Compute, input_peaks: Peaks = MappingProxyType({})
    ) -> Iterator[Part]:
        """All of a plan. Tables and matrices, which are most of it, are packed when their part is made. `input_peaks`
        come from calibrate.py, for PEAKED operands."""
        spec, pieces = checkpoint.spec, checkpoint.tensors.pieces()
        yield Part("embeddings.token", partial(self._table, pieces, compute))
        yield from (plan.ready(name, array) for name, array in _tables(spec, pieces))
        for name, norm in norms(spec):
            yield plan.ready(f"{name}.weight", pieces.exact(f"{name}.weight") + np.float32(norm.offset))
            if norm.bias:
                yield plan.ready(f"{name}.bias", pieces.exact(f"{name}.bias"))
        for name, of in operands(spec, compute):
            peaks = input_peaks.get(_read_by(name))
            weight, bias = (pieces.content(f"{name}.{part}") for part in ("weight", "bias"))
            content = weight and (weight, bias, of, peaks is not None and name)
            yield Part(name, partial(self._linear, spec, pieces, name, of, peaks), content)

    def _table(self, pieces: Pieces, compute: Compute) -> Mapping[str, np.ndarray]:
        """The tokens, often a third of a model, in the numbers of its products; in int8 where these are int4. In fp32
        a table in bf16 stays so: that is exact."""
        table, of = Rows.of(pieces["embeddings.token"]), compute.format
        if of == "fp32" and table.stored == "bf16":
            of = "bf16"
        return pack_table(self.library, table, "int8" if of == "int4" else of)

    def _linear(
        self, spec: EncoderSpec, pieces: Pieces, name: str, of: Operands, peaks: np.ndarray | None
    ) -> Mapping[str, np.ndarray]:
        weight = Rows.of(_matrix(spec, name, pieces))
        bias = pieces.exact(f"{name}.bias") if f"{name}.bias" in pieces else None
        layout = self.layouts[of]
        if _is_gated(spec, name):
            weight = weight.interleaved(layout.lanes)
            bias = None if bias is None else interleave(bias, layout.lanes)
        return pack_linear(self.library, weight, bias, of, layout, peaks, hadamard(spec, of, weight.inputs))


def _tables(spec: EncoderSpec, pieces: Pieces) -> Arrays:
    """The small tables of the embeddings, those of positions, the taps of convolutions, sinks, biases of mixtures, and
    scales."""
    exact = pieces.exact
    if spec.position_offset is not None:
        yield "embeddings.position", exact("embeddings.position")[spec.position_offset :]
    if spec.decoder:
        yield "decoder.position", exact("decoder.position")[spec.position_offset or 0 :]
    if spec.token_types:
        yield "embeddings.token_type", exact("embeddings.token_type")
    for name in spec.bias_names:
        yield name, bias_by_distance(spec, exact(name) if name in pieces else None)
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


def _matrix(spec: EncoderSpec, name: str, pieces: Pieces) -> list[np.ndarray]:
    """[outputs, inputs], piece by piece."""
    if name == "convolution":
        return [_convolution(pieces.exact("convolution.weight"))]
    if spec.layer_inputs and name.endswith(".input_project"):
        i, size = int(name.split(".")[1]), spec.layer_inputs.size
        return [pieces.exact("layer_inputs.project.weight")[i * size : (i + 1) * size]]
    return pieces[f"{name}.weight"]


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


def compute_of(spec: EncoderSpec, precision: Dtype | Integers) -> Compute:
    """In int8 and int4 every large product has it, and bf16 lies between them."""
    if precision == "int8" or precision == "int4":
        return Compute("bf16", precision, tuple(_large(spec)))
    return Compute(precision)


def hadamard(spec: EncoderSpec, operands: Operands, inputs: int) -> int:
    """So many inputs of a product are rotated together before they are rounded to bytes; 1 for none. The activations
    of language models, and of others with RMS norm, have outliers that would use up the range of a byte."""
    has_outliers = spec.causal or spec.norm.kind == "rms"
    return min(_MOST_ROTATED, inputs & -inputs) if operands == "int8" and has_outliers else 1


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
