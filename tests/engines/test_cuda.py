"""The torch engine on CUDA: all but the launch, on a CPU. FlashAttention's place is taken by its definition, and a
recorded graph's by the function that it records."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.compute import Compute
from bei.engines.quantization import gpu_compute
from bei.engines.torch import encoder, fused, varlen
from bei.engines.torch.engine import TorchEngine, _quantized
from bei.engines.torch.graphs import Graphs, bucket, fill
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.linear import Float8Linear
from bei.engines.torch.model import Model
from bei.engines.torch.varlen import Varlen
from bei.engines.torch.weights import Weights, float8_rows
from bei.errors import SetupError
from bei.settings.block import QuantizationType
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import ALIKE, DISENTANGLED, FAMILIES, MIXTURES, T5, random_model, save

FP32 = EngineOptions(precision="fp32", threads=1)
EXACT = Compute("fp32")
IN_GROUPS = ("mpnet", *DISENTANGLED, "xlnet", "gemma2", *MIXTURES, "bloom", "embedding_gemma2_text", *T5)
IN_ONE_KERNEL = [name for name in FAMILIES if name not in (*IN_GROUPS, *ALIKE)]


def flash(q, k, v, cu_q, cu_k, longest_q, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False, num_splits):
    """torch.nn.attention.varlen.varlen_attn, by its documentation."""
    assert cu_q.dtype == torch.int32
    assert num_splits == 1
    out = torch.full_like(q, torch.nan)  # what no sequence owns is any
    for a, b in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        assert b - a <= longest_q
        before, after = (n if n >= 0 else b - a for n in window_size)
        distance = torch.arange(b - a) - torch.arange(b - a)[:, None]
        seen = (distance <= after) & (distance >= -before)
        parts = (x[a:b].transpose(0, 1) for x in (q, k, v))
        out[a:b] = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=enable_gqa).transpose(
            0, 1
        )
    return out


@pytest.fixture
def one_kernel(monkeypatch):
    """As on a GPU that has it, in any precision."""
    on_gpu = functools.partial(torch.device, "cuda")
    fits = Varlen.expresses
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(
        Varlen, "expresses", staticmethod(lambda spec, *_: fits(_eight(spec), on_gpu(), torch.bfloat16))
    )
    monkeypatch.setattr(varlen, "find", lambda: flash)


def _eight(spec):
    """The tiny models' heads have 12 numbers."""
    return replace(spec, head_size=16)


def model_of(checkpoint, compute=EXACT) -> Model:
    return Model(checkpoint.spec, Weights(checkpoint, torch.device("cpu"), compute))


@pytest.mark.parametrize("family", IN_ONE_KERNEL)
def test_one_kernel_gives_what_groups_give(tmp_path, request, family):
    checkpoint = read(save(tmp_path, random_model(family)), "m")
    batch = Batch.pack(sequences(), row_kind="tokens")
    expected = TorchEngine(checkpoint, FP32).run(batch)
    request.getfixturevalue("one_kernel")
    assert not model_of(checkpoint).asks_the_host(Inputs.of(batch, checkpoint.spec))
    found = TorchEngine(checkpoint, FP32).run(batch)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_one_kernel_does_not_express_is_known(tmp_path, one_kernel):
    for family in IN_GROUPS:
        checkpoint = read(save(tmp_path / family, random_model(family)), "m")
        assert model_of(checkpoint).asks_the_host(Inputs.of(Batch.pack([[7, 8]]), checkpoint.spec)), family
    checkpoint = read(save(tmp_path / "colbert", random_model("bert")), "m")
    unseen = Inputs.of(Batch.pack([[7, 8, 9]], attended=[2]), checkpoint.spec)
    assert model_of(checkpoint).asks_the_host(unseen)


class Recorded:
    """A graph's place: what it recorded, run again."""

    def __init__(self, forward, inputs, filled, stream, pool):
        self._forward, self._inputs, self.pool = forward, inputs, object()
        self.shapes = {name: array.shape for name, array in filled.items()}

    def __call__(self, filled):
        assert {name: array.shape for name, array in filled.items()} == self.shapes
        tensors = {name: torch.from_numpy(array) for name, array in filled.items()}
        return self._forward(replace(self._inputs, tensors=tensors))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", [("first",), ("last",), ("mean", "max", "weighted_mean", "mean_sqrt_len")])
@pytest.mark.parametrize("family", ["bert", "qwen3", "modernbert"])
def test_a_filled_batch_gives_the_rows_of_the_batch(tmp_path, one_kernel, family, modes, include_prompt):
    checkpoint = read(save(tmp_path, random_model(family)), "m")
    pooling = replace(checkpoint.spec.pooling, modes=modes, include_prompt=include_prompt)
    model = model_of(replace(checkpoint, spec=replace(checkpoint.spec, pooling=pooling)))
    graphs = Graphs(lambda inputs: model(inputs, "pooled"), None, record=Recorded)
    with torch.inference_mode():
        for ids in ([[7]], [[7, 8, 9], [5, 6]], sequences(), [[9, 8, 7]] * 16, [[7] * 16]):
            inputs = Inputs.of(Batch.pack(ids, prompt_tokens=[1] * len(ids)), model.spec)
            rows = graphs.run(inputs)
            torch.testing.assert_close(rows, model(inputs, "pooled"), atol=1e-5, rtol=1e-5)
    assert len(graphs._by_shape) == 4, "the first two batches fill 16 tokens, of one sequence and of two"


@given(st.integers(1, 4000), st.integers(1, 300))
def test_a_bucket_holds_the_batch(tokens, sequences):
    shape = bucket(tokens, sequences)
    assert (shape is None) == (tokens > 2048)
    if shape is not None:
        assert tokens <= shape[0] < max(17, 2 * tokens)
        assert sequences <= shape[1] < 2 * sequences


def test_what_is_added_belongs_to_no_sequence(tiny_checkpoint):
    arrays = {n: t.numpy() for n, t in Inputs.of(Batch.pack([[7, 8, 9]]), tiny_checkpoint.spec).tensors.items()}
    filled = fill(arrays, 16, 4)
    assert filled["cu_seqlens"].tolist() == [0, 3, 3, 3, 3]
    assert filled["lengths"].tolist() == [3, 0, 0, 0]
    assert len(filled["ids"]) == len(filled["positions"]) == 16


def test_products_of_eight_bits():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 64, generator=generator) for rows in (48, 9))
    x[3] *= 1000  # a row of its own scale
    bias = torch.randn(48, generator=generator)
    product = Float8Linear(*float8_rows(weight), bias, "silu", torch.bfloat16)
    expected = F.silu(x @ weight.T + bias).numpy()
    assert cosines(product(x.bfloat16()).float().numpy(), expected).min() >= 0.998


@pytest.mark.parametrize(("family", "asked"), [("llama", "fp8"), ("qwen3", "fp8"), ("qwen3", "fp8_mlp_only")])
def test_eight_bits_are_near(tmp_path, family, asked):
    random = random_model(family, hidden_size=128, intermediate_size=256, num_attention_heads=2)
    checkpoint, batch = read(save(tmp_path, random), "m"), Batch.pack(sequences())
    compute = gpu_compute("bf16", QuantizationType(asked), checkpoint, (9, 0))
    inputs = Inputs.of(batch, checkpoint.spec)
    exact = TorchEngine(checkpoint, FP32).run(batch)
    with torch.inference_mode():
        rows = model_of(checkpoint, compute)(inputs, "pooled").numpy()
    assert (
        cosines(inputs.layout.unsorted(rows, "pooled"), exact).min() >= 0.95
    )  # of random weights, which forgive little; test_smollm2.py has real ones


def test_a_kernel_that_refuses_is_not_chosen(tmp_path, one_kernel, monkeypatch, caplog):
    checkpoint = read(save(tmp_path, random_model("bert")), "m")

    def only_without(*args, num_splits=None, **options):
        if num_splits is not None:
            raise RuntimeError("num_splits is not supported")
        return flash(*args, num_splits=1, **options)

    monkeypatch.setattr(varlen, "find", lambda: only_without)
    assert not model_of(checkpoint).asks_the_host(Inputs.of(Batch.pack([[7, 8]]), checkpoint.spec))
    assert "num_splits is not supported" in caplog.text

    def never(*args, **options):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")

    monkeypatch.setattr(varlen, "find", lambda: never)
    assert model_of(checkpoint).asks_the_host(Inputs.of(Batch.pack([[7, 8]]), checkpoint.spec))


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.setattr(fused, "_COMPILES", {"cpu"})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("family", ["bert", "qwen3", "gemma3_text"])
def test_what_is_traced_gives_the_same(tmp_path, monkeypatch, request, family):
    checkpoint = read(save(tmp_path, random_model(family)), "m")
    engine = TorchEngine(checkpoint, FP32)
    batches = [Batch.pack(sequences()[:count], row_kind="tokens") for count in (2, 4, 9)]
    expected = [engine.run(batch) for batch in batches]
    request.getfixturevalue("compiling")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for found, rows in zip(map(engine.run, batches), expected, strict=True):
        assert np.abs(found - rows).max() <= 1e-5 * np.abs(rows).max()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 12, "sizes are variables from the second batch on"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's own
def test_what_is_compiled_gives_the_same(compiling):
    x, cos_sin = torch.randn(5, 3, 16).bfloat16(), torch.randn(5, 12)
    exact = encoder._rotated.__wrapped__(x, None, cos_sin, torch.float32)
    torch.testing.assert_close(encoder._rotated(x, None, cos_sin, torch.float32), exact)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_a_compiler_it_runs_unfused(monkeypatch, caplog):
    def refuse(function):
        def call(*args):
            raise torch._dynamo.exc.BackendCompilerFailed(refuse, RuntimeError("no Triton"), None)

        return call

    monkeypatch.setattr(fused, "_COMPILES", {"cpu"})
    monkeypatch.setattr(torch, "compile", refuse)
    double = fused.fused(lambda x: 2 * x)
    for _ in range(2):
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert caplog.text.count("runs unfused") == 1


def test_fp8_computes_beside_bf16(tiny_checkpoint, one_kernel):
    options = EngineOptions(quantization=QuantizationType.FP8)
    for dtype in ("bf16", "fp16"):  # the GPU's choice
        found = _quantized(dtype, tiny_checkpoint, options)
        assert (found.dtype, found.format) == ("bf16", "fp8")
    with pytest.raises(SetupError, match="beside bf16, not fp16"):
        _quantized("fp16", tiny_checkpoint, replace(options, precision="fp16"))
    assert _quantized("fp16", tiny_checkpoint, EngineOptions(precision="fp16")) == Compute("fp16")


def test_fp4_is_the_tensorrt_engine_s(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    with pytest.raises(SetupError, match="fp4 is the tensorrt engine's"):
        _quantized("bf16", tiny_checkpoint, EngineOptions(quantization=QuantizationType.FP4_MLP_ONLY))
