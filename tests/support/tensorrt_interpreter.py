"""Computes a TensorRT network layer by layer on a CPU, as NVIDIA's reference of the network API defines each layer.

There is no GPU, kernel or optimizer: the tests show that the network given to TensorRT is the model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch, EngineFacts, EngineOptions
from bei.engines.compute import Compute
from bei.engines.small_floats import BLOCK
from bei.engines.tensorrt import api as tensorrt
from bei.engines.tensorrt.build import define
from bei.engines.tensorrt.engine import recipe_of
from bei.engines.tensorrt.graph import Graph
from bei.engines.tensorrt.runner import Call, Runner

_TORCH = {
    **{"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32},
    **{"INT64": torch.int64, "BOOL": torch.bool, "FP8": torch.float8_e4m3fn},
}
_ELEMENTWISE = {
    **{"SUM": torch.add, "PROD": torch.mul, "SUB": torch.sub, "DIV": torch.div, "MAX": torch.maximum},
    **{"AND": torch.logical_and, "LESS": torch.lt, "GREATER": torch.gt, "EQUAL": torch.eq, "MIN": torch.minimum},
}
_UNARY = {"SQRT": torch.sqrt, "ABS": torch.abs, "LOG": torch.log, "ROUND": torch.round, "EXP": torch.exp}
_ACTIVATION = {
    **{"GELU_ERF": F.gelu, "GELU_TANH": lambda x: F.gelu(x, approximate="tanh"), "RELU": F.relu},
    **{"SIGMOID": torch.sigmoid, "TANH": torch.tanh},
}
_REDUCE = {"SUM": torch.sum, "AVG": torch.mean, "MAX": torch.amax}


@dataclass(frozen=True)
class Declared:
    """A tensor as TensorRT infers it; a size of -1 is known when the network runs."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, tensor) -> "Declared":
        return cls(tensor.name, tuple(tensor.shape), _TORCH.get(tensor.dtype.name))

    def check(self, value: Tensor) -> None:
        """The type, and the shape where it is static."""
        assert len(self.shape) == value.ndim, (self.name, self.shape, value.shape)
        assert all(a in (-1, b) for a, b in zip(self.shape, value.shape, strict=True)), (self.shape, value.shape)
        assert self.dtype in (None, value.dtype), (self.name, self.dtype, value.dtype)


@dataclass(frozen=True)
class Step:
    """A layer, the function that computes it, the names of its inputs, and its outputs."""

    layer: Any
    compute: Callable
    inputs: list[str | None]
    outputs: list[Declared]


class Interpreter:
    """An Execution (engines/tensorrt/runner.py). The network is read once: each question to TensorRT takes longer than
    the arithmetic of a tiny layer."""

    def __init__(self, graph: Graph):
        self._constants, self._trt, network = graph.constants, graph.trt, graph.network
        self._given = [Declared.of(network.get_input(i)) for i in range(network.num_inputs)]
        self._made = [network.get_output(i).name for i in range(network.num_outputs)]
        self._steps = [self._step(network.get_layer(i)) for i in range(network.num_layers)]
        self.inputs = tuple(given.name for given in self._given)

    def run(self, calls: list[Call], output: str) -> list[np.ndarray]:
        return [self._run(call.inputs)[output].numpy() for call in calls]

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        values = {}
        for given in self._given:
            values[given.name] = torch.from_numpy(inputs[given.name])
            assert len(given.shape) == values[given.name].ndim, given.name
            assert values[given.name].dtype == given.dtype, given.name
        constants = iter(self._constants)
        for step in self._steps:
            args = [None if name is None else values[name] for name in step.inputs]
            made = step.compute(step.layer, args, constants, values)
            for output, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True):
                values[output.name] = value
                output.check(value)
        return {name: values[name] for name in self._made}

    def _step(self, layer) -> Step:
        kind = layer.type.name
        layer.__class__ = self._class(kind)
        found = [layer.get_input(j) for j in range(layer.num_inputs)]
        names = [None if tensor is None else tensor.name for tensor in found]
        outputs = [Declared.of(layer.get_output(j)) for j in range(layer.num_outputs)]
        return Step(layer, getattr(self, kind.lower()), names, outputs)

    def _class(self, kind: str) -> type:
        """The bindings return the base class; a layer's own class has its parameters."""
        trt = self._trt
        special = {"MATRIX_MULTIPLY": trt.IMatrixMultiplyLayer, "ELEMENTWISE": trt.IElementWiseLayer}
        special |= {"TOPK": trt.ITopKLayer, "SOFTMAX": trt.ISoftMaxLayer, "ATTENTION_INPUT": trt.IAttentionInputLayer}
        special |= {"ATTENTION_OUTPUT": trt.IAttentionOutputLayer, "DYNAMIC_QUANTIZE": trt.IDynamicQuantizeLayer}
        return special.get(kind) or getattr(trt, f"I{kind.title().replace('_', '')}Layer")

    def constant(self, layer, args, constants, values):
        array = next(constants)
        match array.dtype.name:
            case "bfloat16":
                return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
            case "float8_e4m3fn":
                return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
            case "uint8":
                codes = np.stack([array & 15, array >> 4], -1).reshape(len(array), -1)
                return torch.from_numpy(codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32))
        return torch.from_numpy(array)

    def gather(self, layer, args, constants, values):
        if layer.mode.name == "ELEMENT":
            x, indices = args
            assert layer.axis == x.ndim - 1
            assert x.shape[:-1] == indices.shape[:-1], (x.shape, indices.shape)
            return x.gather(-1, indices.long())
        assert layer.axis == 0
        assert layer.num_elementwise_dims == 0
        return args[0][args[1].long()]

    def cast(self, layer, args, constants, values):
        return args[0].to(_TORCH[layer.to_type.name])

    def identity(self, layer, args, constants, values):
        return args[0]

    def elementwise(self, layer, args, constants, values):
        a, b = args
        assert a.dtype == b.dtype
        assert a.ndim == b.ndim
        return _ELEMENTWISE[layer.op.name](a, b)

    def unary(self, layer, args, constants, values):
        return _UNARY[layer.op.name](args[0])

    def activation(self, layer, args, constants, values):
        return _ACTIVATION[layer.type.name](args[0])

    def reduce(self, layer, args, constants, values):
        axis = layer.axes.bit_length() - 1
        assert layer.axes == 1 << axis
        return _REDUCE[layer.op.name](args[0], axis, keepdim=layer.keep_dims)

    def softmax(self, layer, args, constants, values):
        return args[0].softmax(layer.axes.bit_length() - 1)

    def select(self, layer, args, constants, values):
        assert args[0].dtype == torch.bool
        assert args[1].dtype == args[2].dtype
        return torch.where(*args)

    def matrix_multiply(self, layer, args, constants, values):
        a, b = args
        assert a.dtype == b.dtype
        if layer.op1 == self._trt.MatrixOperation.TRANSPOSE:
            b = b.transpose(-1, -2)
        return a @ b

    def shuffle(self, layer, args, constants, values):
        x, order = args[0], tuple(layer.first_transpose)[: args[0].ndim]
        if order != tuple(range(x.ndim)):
            return x.permute(order)
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(layer.reshape_dims)])

    def concatenation(self, layer, args, constants, values):
        return torch.cat(args, layer.axis)

    def shape(self, layer, args, constants, values):
        return torch.tensor(args[0].shape)

    def slice(self, layer, args, constants, values):
        """x[start + stride * i] for i below the size, on each axis."""
        found, size = args[0], args[2].tolist()
        start = list(layer.start) if len(args) < 2 or args[1] is None else args[1].tolist()
        for axis, (a, n, step) in enumerate(zip(start, size, layer.stride, strict=True)):
            found = found.index_select(axis, a + step * torch.arange(n))
        return found

    def topk(self, layer, args, constants, values):
        assert layer.op.name == "MAX"
        numbers, places = args[0].topk(layer.k, layer.axes.bit_length() - 1)
        return numbers, places.int()

    def one_hot(self, layer, args, constants, values):
        indices, values, depth = args
        assert layer.axis in (-1, indices.ndim)
        return torch.where(F.one_hot(indices.long(), int(depth)) > 0, values[1], values[0])

    def unsqueeze(self, layer, args, constants, values):
        for axis in args[1].tolist():
            args[0] = args[0].unsqueeze(axis)
        return args[0]

    def quantize(self, layer, args, constants, values):
        x = (args[0].float() / args[1]).clamp(-448, 448)
        return x.to(torch.float8_e4m3fn)

    def dynamic_quantize(self, layer, args, constants, values):
        x, scale = args
        blocks = x.float().unflatten(-1, (-1, BLOCK))
        scales = (blocks.abs().amax(-1) / 6 / scale).clamp(max=448).to(torch.float8_e4m3fn)
        units = (scales.float() * scale)[..., None]
        numbers = torch.where(units > 0, blocks / units, 0).clamp(-6, 6).numpy()
        rounded = numbers.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return torch.from_numpy(rounded).flatten(-2), scales

    def dequantize(self, layer, args, constants, values):
        x, scale = args[0].float(), args[1].float()
        if scale.ndim == x.ndim and scale.ndim > 1:
            scale = scale.repeat_interleave(BLOCK, -1)
        elif scale.ndim == 1:
            assert layer.axis == 0
            scale = scale[:, None]
        return (x * scale).to(_TORCH[layer.get_output(0).dtype.name])

    def attention_input(self, layer, args, constants, values):
        self._asked = layer.attention, args
        return args[0]

    def attention_output(self, layer, args, constants, values):
        return self._attend(layer.attention, values)

    def _attend(self, attention, values):
        q, k, v = (values[attention.get_input(i).name] for i in range(3))
        assert q.dtype == k.dtype == v.dtype
        causal = attention.causal_kind.name == "UPPER_LEFT"
        of = {name: getattr(attention, name) for name in ("mask", "query_lengths", "key_value_lengths")}
        mask, cu_seqlens, lengths = (None if tensor is None else values[tensor.name] for tensor in of.values())
        if attention.query_form.name == "PACKED_NHD":
            assert mask is None
            spans = zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)
            parts = [self._softmax(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), causal) for a, b in spans]
            return torch.cat([part[0].transpose(0, 1) for part in parts])
        added = torch.zeros((), dtype=torch.float32)
        if mask is not None:
            added = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask.float()
        if lengths is not None:
            hidden = torch.arange(k.shape[2]) >= lengths[:, None]
            added = added + torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)[:, None, None]
        return self._softmax(q, k, v, causal, added)

    @staticmethod
    def _softmax(q, k, v, causal, added=0.0):
        """[batch, heads, tokens, size]; no scale: the network has multiplied q by it."""
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = q.float() @ k.float().transpose(-1, -2) + added
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        return (scores.softmax(-1).to(v.dtype).float() @ v.float()).to(v.dtype)


class Interpreted:
    """The TensorRT engine with its network interpreted; everything but the launch is unchanged."""

    fault = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: EngineOptions,
        packed: bool = True,
        compute: Compute | None = None,
        peaks: dict[str, float] | None = None,
    ):
        recipe = recipe_of(checkpoint, options, compute or Compute(options.precision))
        self.facts = EngineFacts(
            name="tensorrt",
            device="cpu",
            precision=recipe.compute.dtype,
            quantization=recipe.compute.quantization,
            reason="interpreted",
            streams=1,
            token_budget=recipe.profiles[0].tokens,
        )
        api = tensorrt.load()
        graph, network = define(api, api.builder(), checkpoint, recipe, peaks or {}, packed)
        self.attending = network.attending
        self._runner = Runner(checkpoint.spec, recipe.profiles, [Interpreter(graph)])

    def run(self, batch: Batch) -> np.ndarray:
        return self._runner.run(batch)
