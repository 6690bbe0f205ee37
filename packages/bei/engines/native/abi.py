"""cpp/abi.h in ctypes, field by field."""

from collections.abc import Iterator, Mapping
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p, sizeof
from typing import Any, get_args

import numpy as np

from bei.architectures.spec import NormPlace, PoolingMode

Encoder = c_void_p

PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
STORED = {"fp32": 0, "bf16": 1, "fp16": 2}
ACTIVATIONS = {"identity": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5, "sigmoid": 6}
NORMS = {"layer": 0, "rms": 1, "affine": 2}
DENSE, LAYER_NORM, NORMALIZE, LOG1P_RELU, INT8_TANH = range(5)
MODES: dict[str, int] = {mode: number for number, mode in enumerate(get_args(PoolingMode))}
LAYER_NORMS = (*get_args(NormPlace), "query_norm", "key_norm", "value_norm")
ERRORS = {1: "the batch does not fit the model", 2: "out of memory", 3: "an exception that it does not know"}


class Linear(Structure):
    _fields_ = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("input_scales", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("precision", c_int32),
        ("activation", c_int32),
        ("hadamard", c_int32),
    ]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("size", c_int32), ("kind", c_int32), ("eps", c_float)]


class HeadLayer(Structure):
    _fields_ = [
        ("kind", c_int32),
        ("adds_input", c_int32),
        ("linear", Linear),
        ("residual", Linear),
        ("norm", Norm),
    ]


class Experts(Structure):
    _fields_ = [
        ("up", POINTER(Linear)),
        ("down", POINTER(Linear)),
        ("router", Linear),
        ("bias", c_void_p),
        ("count", c_int32),
        ("chosen", c_int32),
        ("intermediate_size", c_int32),
        ("gated", c_int32),
        ("normalized", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
    ]


class NarrowMlp(Structure):
    _fields_ = [("up", Linear), ("down", Linear), ("norm", Norm)]


class Bottleneck(Structure):
    _fields_ = [
        *((name, Linear) for name in ("enter", "shared", "query_key", "value", "out", "leave")),
        *((name, Norm) for name in ("enter_norm", "shared_norm", "out_norm", "leave_norm")),
        ("mlps", POINTER(NarrowMlp)),
        ("mlp_count", c_int32),
    ]


class LayerInput(Structure):
    _fields_ = [
        *((name, Linear) for name in ("project", "gate", "out")),
        *((name, Norm) for name in ("project_norm", "norm")),
        ("scale", c_float),
    ]


class Layer(Structure):
    _fields_ = [
        *((name, Linear) for name in ("qkv", "key_value", "out", "up", "down")),
        *((name, Norm) for name in LAYER_NORMS),
        ("bias_by_distance", c_void_p),
        ("position_keys", c_void_p),
        ("position_queries", c_void_p),
        ("segments", c_void_p),
        ("segment_bias", c_void_p),
        ("taps", c_void_p),
        ("sinks", c_void_p),
        ("kv_heads", c_int32),
        ("head_size", c_int32),
        ("causal", c_int32),
        ("window", c_int32),
        ("rotary", c_int32),
        ("tap_count", c_int32),
        ("first_tap", c_int32),
        ("experts", Experts),
        ("bottleneck", POINTER(Bottleneck)),
        ("input", POINTER(LayerInput)),
    ]


class Model(Structure):
    _fields_ = [
        ("precision", c_int32),
        ("vocab_size", c_int32),
        ("hidden_size", c_int32),
        ("heads", c_int32),
        ("intermediate_size", c_int32),
        ("max_tokens", c_int32),
        ("type_count", c_int32),
        ("embedding_size", c_int32),
        ("gated", c_int32),
        ("token_precision", c_int32),
        ("dropped_token", c_int32),
        ("trigrams", c_int32),
        ("attention_scale", c_float),
        ("soft_cap", c_float),
        ("embedding_scale", c_float),
        ("query_growth", c_float),
        ("residual_scale", c_float),
        ("query_trained", c_int32),
        ("parallel", c_int32),
        ("tokens", c_void_p),
        ("token_scales", c_void_p),
        ("positions", c_void_p),
        ("types", c_void_p),
        ("embedding_norm", Norm),
        ("final_norm", Norm),
        ("project", Linear),
        ("convolution", Linear),
        ("convolution_norm", Norm),
        ("position_rows", c_void_p),
        ("layers", POINTER(Layer)),
        ("layer_count", c_int32),
        ("convolution_taps", c_int32),
        ("first_decoding", c_int32),
        ("decoder_start", c_int32),
        ("decoder_positions", c_void_p),
        ("decoder_norm", Norm),
        ("rotary_sizes", POINTER(c_int32)),
        ("token_head_layers", POINTER(HeadLayer)),
        ("head_layers", POINTER(HeadLayer)),
        ("token_head_layer_count", c_int32),
        ("head_layer_count", c_int32),
        ("modes", POINTER(c_int32)),
        ("mode_count", c_int32),
        ("include_prompt", c_int32),
        ("input_peaks", c_void_p),
    ]


class Batch(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("input_ids", "token_types", "cu_seqlens", "prompt_tokens", "attended")),
        ("rotaries", POINTER(c_void_p)),
        ("parents", c_void_p),
        ("marked", c_void_p),
        ("sequences", c_int32),
        ("marked_count", c_int32),
    ]


class Field(Structure):
    _fields_ = [("name", c_char_p), ("offset", c_int32), ("size", c_int32)]


class Layout(Structure):
    _fields_ = [
        ("lanes", c_int32),
        ("panel", c_int32),
        ("word_multiple", c_int32),
        ("row_group", c_int32),
        ("block_rows", c_int32),
        ("largest", c_float),
        ("largest_pair", c_float),
    ]


class Matrix(Structure):
    _fields_ = [
        ("rows", c_void_p),
        ("input_peaks", c_void_p),
        ("stored", c_int32),
        ("precision", c_int32),
        ("inputs", c_int32),
        ("columns", c_int32),
        ("hadamard", c_int32),
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("input_scales", c_void_p),
    ]


class Machine(Structure):
    _fields_ = [
        ("threads", c_int32),
        *((name, c_int64) for name in ("second_cache", "last_cache")),
        *((name, c_float) for name in ("meeting", "waking")),
    ]


class Sharing(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("threads", "by_columns", "meetings")),
        *((name, c_float) for name in ("alone", "shared")),
    ]


STRUCTURES = (
    *(Linear, Norm, HeadLayer, Experts, NarrowMlp, Bottleneck, LayerInput, Layer, Model, Batch),
    *(Field, Layout, Matrix, Machine, Sharing),
)
Layouts = Mapping[str, Layout]
"""Of each precision."""


def mismatch(fields: Any) -> str | None:
    """The first field that is not where the library has it, in words. fields: what `bei_abi` returns."""
    theirs = {}
    for field in fields:
        if field.name is None:
            break
        theirs[field.name.decode()] = field.offset, field.size
    ours = dict(_places())
    for name in sorted(ours | theirs, key=lambda name: "." not in name):  # fields, then whole structures
        if ours.get(name) != theirs.get(name):
            return f"{name} is {_place(theirs.get(name))} in the library, and {_place(ours.get(name))} in abi.py"
    return None


def _places() -> Iterator[tuple[str, tuple[int, int]]]:
    for structure in STRUCTURES:
        for name, *_ in structure._fields_:
            field = getattr(structure, name)
            yield f"{structure.__name__}.{name}", (field.offset, field.size)
        yield structure.__name__, (0, sizeof(structure))


def _place(place: tuple[int, int] | None) -> str:
    return "missing" if place is None else f"{place[1]} bytes at {place[0]}"


def address(array: np.ndarray | None) -> int | None:
    """The address of the first number; the caller keeps the array alive."""
    return None if array is None else array.ctypes.data


def sequence(kind: Any, items: list[Any]) -> Any:
    """A C array."""
    return (kind * len(items))(*items)
