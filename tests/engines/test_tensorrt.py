"""TensorRT without the launch: an interpreter computes its networks (the parity suite uses it, too), and TensorRT-RTX
builds them ahead of time for GPUs that are not here."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bei.architectures.spec import EncoderSpec, Norm, Pooling
from bei.checkpoint.load import read
from bei.engines import small_floats
from bei.engines.base import Batch, Calibration, EngineOptions, pool
from bei.engines.compute import Compute
from bei.engines.quantization import gpu_compute
from bei.engines.tensorrt import engine, execution
from bei.engines.tensorrt.build import build, define
from bei.engines.tensorrt.engine import TensorRTEngine, recipe_of
from bei.engines.tensorrt.execution import GPU
from bei.engines.tensorrt.inputs import Inputs, select
from bei.engines.tensorrt.profiles import Profile, chunks, profiles
from bei.engines.torch.engine import TorchEngine
from bei.engines.torch.inputs import to_pinned
from bei.engines.torch.peaks import input_peaks
from bei.errors import SetupError
from bei.settings.block import QuantizationType
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import (
    ALIKE,
    ALL_EXPERTS,
    DISENTANGLED,
    FAMILIES,
    T5,
    VOCAB,
    random_model,
    save,
)

pytest.importorskip("tensorrt_rtx")
from bei.engines.tensorrt import api as tensorrt
from tests.support.tensorrt_interpreter import Interpreted, Interpreter

FP32 = EngineOptions(precision="fp32")
SPEC = EncoderSpec(
    **{"vocab_size": 50, "hidden_size": 3, "embedding_size": 3, "intermediate_size": 3, "max_tokens": 9},
    **{"heads": 1, "kv_heads": 1, "head_size": 3, "attention_scale": 1.0, "layers": ()},
    **{"activation": "gelu", "norm": Norm("layer", 1e-5)},
)
FACTORS = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
SCORED = ("gemma2", *DISENTANGLED, "xlnet", "openai_privacy_filter")
MASKED = ("mpnet", "modernbert", "mistral", "gemma3_text", "embedding_gemma2_text", "jina_bert", "bloom", *T5)
EXPRESSED = [family for family in FAMILIES if family not in ALIKE]
BUILT = [family for family in EXPRESSED if family not in ("deberta", "qwen3_moe")]
"""Another family has every word of these two; a build takes a second or two."""


@pytest.fixture(scope="module")
def api():
    return tensorrt.load()


# Profiles and inputs


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=40),
    st.integers(64, 4000),
    st.integers(1, 16),
    st.integers(1, 1 << 20),
)
def test_chunks_hold_every_sequence_once_and_fit(lengths, max_tokens, max_sequences, width):
    of = profiles(600, max_tokens, max_sequences, width)
    lengths = np.array(lengths)
    cut = chunks(lengths, of)
    assert sorted(np.concatenate([chunk.sequences for chunk in cut]).tolist()) == list(range(len(lengths)))
    for chunk in cut:
        profile, own = of[chunk.profile], lengths[chunk.sequences]
        assert len(own) <= profile.sequences
        assert own.max() <= profile.length
        assert own.sum() <= profile.tokens


def test_profiles_reach_from_short_texts_to_the_longest():
    assert profiles(8192, 16384, 256, 4096) == (
        *(Profile(16384, 128, 128), Profile(16384, 32, 512)),
        *(Profile(16384, 8, 2048), Profile(16384, 2, 8192)),
    )
    assert profiles(100, 16384, 256, 4096) == (Profile(16300, 163, 100),)
    assert profiles(8192, 4096, 256, 4096)[-1] == Profile(8192, 1, 8192), "one of the longest always fits"
    assert profiles(512, 16384, 256, 30522)[0].tokens <= (1 << 28) // 30522, "SPLADE's rows are wide"
    assert profiles(8192, 16384, 256, 4096, scored_heads=16)[2] == Profile(8192, 4, 2048), "scores are wide"


def test_a_sequence_longer_than_the_plan_is_refused():
    with pytest.raises(ValueError, match="of 700 tokens is longer than the plan takes, 600"):
        chunks(np.array([3, 700]), profiles(600, 1000, 8, 64))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_inputs_pool_as_the_oracle_does(lengths, random):
    rng = np.random.default_rng(random.randrange(1 << 32))
    ids = [rng.integers(0, 50, n).tolist() for n in lengths]
    batch = Batch.pack(ids, prompt_tokens=[random.randrange(n + 2) for n in lengths])
    order = rng.permutation(len(ids))
    batch = select(batch, order)
    assert [batch.input_ids[a:b].tolist() for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)] == [
        ids[i] for i in order
    ]
    states = rng.standard_normal((len(batch.input_ids), 3)).astype(np.float32)
    for include in (True, False):
        pooling = Pooling(("mean", "sum", "mean_sqrt_len", "weighted_mean", "max", "first", "last"), include)
        names = ("sources", "firsts", "lasts", *(f"pool_{mode}" for mode in pooling.modes[:5]))
        spec = replace(SPEC, pooling=pooling)
        made = Inputs(spec).of(batch, names)
        padded = states[made["sources"]]
        rows = [(padded * made[f"pool_{mode}"][..., None]).sum(1) for mode in pooling.modes[:4]]
        rows.append(np.where(made["pool_max"][..., None] > 0, padded, -np.inf).max(1))
        rows += [states[made["firsts"]], states[made["lasts"]]]
        np.testing.assert_allclose(np.concatenate(rows, 1), pool(states, batch, pooling), atol=1e-5)
    back = Inputs(SPEC).of(batch, ("slots",))["slots"]
    np.testing.assert_array_equal(padded.reshape(-1, 3)[back], states)


def test_what_goes_to_the_gpu_is_one_block():
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.ones((2, 2), np.float32)}
    block, views = to_pinned(arrays, pin=False)
    for name, tensor in views(block.clone()).items():
        assert views.offsets[name] % 256 == 0
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


# Numbers of eight and four bits


def test_fp8_rows_are_within_half_a_unit():
    weight = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * np.logspace(-4, 2, 5)[:, None]
    weight[2] = 0
    numbers, scales = small_floats.fp8(weight.astype(np.float32))
    found = numbers.astype(np.float32) * scales[:, None]
    assert (np.abs(found - weight) <= np.abs(weight) / 16 + scales[:, None] / 512).all()


def test_fp4_is_what_tensorrt_reads():
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    weight[3] = 0
    packed = small_floats.fp4(weight)
    assert packed.nibbles.shape == (8, 32)
    assert packed.scales.shape == (8, 4)
    found = small_floats.unpack_fp4(packed)
    assert cosines(found[weight.any(1)], weight[weight.any(1)]).min() > 0.99
    grid = np.array([[0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0]], np.float32)
    np.testing.assert_allclose(small_floats.unpack_fp4(small_floats.fp4(grid)), grid, rtol=1e-6)


# Networks


@pytest.mark.parametrize("family", EXPRESSED)
def test_every_way_to_attend_gives_the_same(tmp_path, api, monkeypatch, family):
    checkpoint = read(save(tmp_path, random_model(family)), "m")
    batch = Batch.pack(sequences())
    expected = TorchEngine(checkpoint, FP32).run(batch)
    packed, padded = Interpreted(checkpoint, FP32), Interpreted(checkpoint, FP32, packed=False)
    assert packed.attending.packed == (family not in (*MASKED, *SCORED))
    older = copy(api)  # as TensorRT 10: no packed attention, no lengths, so all by a mask
    older.has_packed_attention = older.has_lengths = False
    monkeypatch.setattr(tensorrt, "load", lambda: older)
    masked = Interpreted(checkpoint, FP32)
    assert masked.attending.masked
    for interpreted in (packed, padded, masked):
        assert np.abs(interpreted.run(batch) - expected).max() <= 2e-5 * np.abs(expected).max()


def test_what_would_cost_too_much_is_named(tmp_path):
    folder = save(tmp_path / "a", random_model("qwen3_moe", num_experts=17))
    with pytest.raises(SetupError, match="a mixture of 17 experts needs the torch engine"):
        recipe_of(read(folder, "m"), FP32, Compute("bf16"))
    checkpoint = read(save(tmp_path / "b", random_model("gemma2")), "m")
    assert len(recipe_of(replace(checkpoint, max_tokens=16384), FP32, Compute("bf16")).profiles) == 5
    with pytest.raises(SetupError, match="relative positions over 32768 tokens needs the torch engine"):
        recipe_of(replace(checkpoint, max_tokens=32768), FP32, Compute("bf16"))


def test_an_expert_that_is_not_chosen_adds_nothing(tmp_path):
    """Its output may be infinite: in fp16 as here."""
    model = random_model("openai_privacy_filter", **ALL_EXPERTS["openai_privacy_filter"] | {"num_experts_per_tok": 7})
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.router.bias[3] -= 1e4
            layer.mlp.experts.down_proj[3] *= 1e4
    checkpoint, batch = read(save(tmp_path, model), "m"), Batch.pack(sequences())
    found = Interpreted(checkpoint, EngineOptions(precision="fp16")).run(batch)
    assert cosines(found, TorchEngine(checkpoint, FP32).run(batch)).min() >= 0.9995


def test_without_a_gpu_the_engine_says_so(tmp_path):
    with pytest.raises(SetupError, match="no NVIDIA GPU"):
        TensorRTEngine(read(save(tmp_path, random_model("bert")), "m"))


# Builds, ahead of time


@pytest.mark.parametrize(
    ("family", "target"), [*((family, "SM89") for family in BUILT), ("bert", "SM80"), ("qwen3", "SM120")]
)
def test_every_architecture_builds(tmp_path, api, family, target):
    plan = _build(api, read(save(tmp_path, _fused(family)), "m"), Compute("bf16"), target)
    assert len(plan) > 1000


@pytest.mark.parametrize(("target", "asked"), [("SM89", "fp8"), ("SM120", "fp8_mlp_only"), ("SM120", "fp4")])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_every_quantized_architecture_builds(tmp_path, api, family, target, asked):
    checkpoint = read(save(tmp_path, _fused(family)), "m")
    compute = gpu_compute("bf16", QuantizationType(asked), checkpoint, (12, 0))
    assert len(compute.products) == 2 * len(checkpoint.spec.layers) * (1 if asked == "fp8_mlp_only" else 2)
    assert len(_build(api, checkpoint, compute, target)) > 1000


def _fused(family: str, seed: int = 0):
    """Sizes that fused attention and products of eight bits have, and every word that the family's options bring."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    own = {
        "gpt2": {"n_embd": 128, "n_inner": 256, "n_head": 2},
        "bloom": {"hidden_size": 128, "n_head": 2},
        "xlnet": {"d_model": 128, "d_inner": 256, "n_head": 2},
        "mobilebert": {**sizes, "intra_bottleneck_size": 128, "embedding_size": 64},
        "deberta-v2": {**sizes, "conv_kernel_size": 3, "conv_groups": 2},
        "phi3": {**sizes, "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, **FACTORS}},
    }
    return random_model(family, seed, vocab_size=len(VOCAB), **own.get(family, sizes))


def _build(api, checkpoint, compute: Compute, target: str) -> np.ndarray:
    recipe = recipe_of(checkpoint, EngineOptions(), compute, target)
    return build(api, checkpoint, recipe, dict.fromkeys(compute.products, 4.0))[0]


# The engine, on a GPU that is not here


@pytest.fixture
def on_gpu(monkeypatch, api, tmp_path):
    """on_gpu(checkpoint, driver="580", **options): an engine; its plan is built for SM89, its network interpreted.
    on_gpu.built is how many plans were built."""

    def make(checkpoint, driver: str = "580", **options) -> TensorRTEngine:
        monkeypatch.setattr(engine, "gpu", lambda: GPU("L4", (8, 9), driver))
        return TensorRTEngine(checkpoint, EngineOptions(cache_dir=tmp_path / "cache", **options))

    def build_ahead(api, checkpoint, recipe, peaks, timing):
        make.built += 1
        make.graph = define(api, api.builder(), checkpoint, recipe, peaks)[0]
        return build(api, checkpoint, replace(recipe, target="SM89"), peaks, timing)

    make.built = 0
    monkeypatch.setattr(engine, "build", build_ahead)
    monkeypatch.setattr(engine, "open_plan", lambda api, content, streams: [Interpreter(make.graph)] * streams)
    return make


def test_a_plan_is_built_once(tmp_path, on_gpu):
    checkpoint = read(save(tmp_path / "m", _fused("bert")), "m")
    batch = Batch.pack(sequences())
    first = on_gpu(checkpoint, precision="bf16")
    expected = TorchEngine(checkpoint, FP32).run(batch)
    assert (first.facts.device, first.facts.precision, on_gpu.built) == ("L4", "bf16", 1)
    assert cosines(first.run(batch), expected).min() >= 0.9995
    on_gpu(checkpoint, precision="bf16")
    assert on_gpu.built == 1
    changed = ({"driver": "590"}, {"precision": "fp16"}, {"max_num_tokens": 4096})
    for count, options in enumerate(changed, 2):
        on_gpu(checkpoint, **({"precision": "bf16"} | options))
        assert on_gpu.built == count, options
    other = read(save(tmp_path / "other", _fused("bert", seed=1)), "m")
    on_gpu(other, precision="bf16")
    assert on_gpu.built == 5


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({}, ("bf16", "none", "bf16")),
        ({"precision": "fp16"}, ("fp16", "none", "fp16")),
        ({"quantization": QuantizationType.FP8_MLP_ONLY}, ("bf16", "fp8_mlp_only", "fp8_mlp_only")),
    ],
)
def test_the_dtype_and_the_quantization_of_the_engine(tmp_path, on_gpu, options, facts):
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sat on the mat\n")
    found = on_gpu(
        read(save(tmp_path / "m", _fused("bert")), "m"), calibration=Calibration(str(texts)), **options
    ).facts
    assert (found.precision, found.quantization, found.computes_in) == facts


def test_int8_and_int4_are_not_its(tiny_checkpoint, on_gpu):
    for precision in ("int8", "int4"):
        with pytest.raises(SetupError, match=f"{precision} needs the native engine; on a GPU set quantization_type fp"):
            on_gpu(tiny_checkpoint, precision=precision)


def test_a_broken_plan_is_built_again(tmp_path, on_gpu):
    checkpoint = read(save(tmp_path / "m", _fused("bert")), "m")
    on_gpu(checkpoint, precision="bf16")
    (file,) = (tmp_path / "cache").rglob("*.plan")
    whole = file.read_bytes()
    for count, content in enumerate((whole[:1000], b"", b"not a plan" * 100), 2):
        file.write_bytes(content)
        on_gpu(checkpoint, precision="bf16")
        assert on_gpu.built == count
        assert len(file.read_bytes()) == len(whole)


def test_a_plan_that_does_not_run_is_refused(tmp_path, on_gpu, monkeypatch):
    checkpoint = read(save(tmp_path / "m", _fused("bert")), "m")

    class Broken(Interpreter):
        def run(self, calls, output):
            raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(engine, "open_plan", lambda *_: [Broken(on_gpu.graph)])
    with pytest.raises(SetupError, match="the plan does not run on L4: no kernel image"):
        on_gpu(checkpoint, precision="bf16")
    monkeypatch.setattr(engine, "build", raising(PermissionError(13, "Permission denied", "plan")))
    with pytest.raises(SetupError, match="plan: Permission denied; set BEI_CACHE_DIR"):
        on_gpu(checkpoint, precision="fp16")


def raising(error: Exception):
    def call(*_):
        raise error

    return call


def test_calibration_texts_set_the_scales(tmp_path, on_gpu, monkeypatch):
    checkpoint = read(save(tmp_path / "m", _fused("llama")), "m")
    seen = {}
    monkeypatch.setattr(engine, "build", lambda *args: seen.update(args[3]) or build_nothing())
    monkeypatch.setattr(engine, "open_plan", raising(SetupError("far enough")))
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sat on the mat\na big red dog ran\n")
    peaks = []
    for tokens in (64, 2):
        with pytest.raises(SetupError, match="far enough"):
            on_gpu(checkpoint, quantization=QuantizationType.FP8, calibration=Calibration(str(texts), 64, tokens))
        peaks.append(dict(seen))
    assert set(peaks[0]) == {f"layers.{i}.{part}" for i in range(3) for part in ("qkv", "out", "up", "down")}
    assert peaks[0] != peaks[1], "the second reads two tokens of each text"
    with pytest.raises(SetupError, match=r"calib_dataset .*absent\.txt"):
        absent = Calibration(str(tmp_path / "absent.txt"))
        on_gpu(checkpoint, quantization=QuantizationType.FP8, calibration=absent)


def build_nothing() -> tuple[np.ndarray, bytes]:
    return np.zeros(8, np.uint8), b""


def test_the_gpu_and_its_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    file = tmp_path / "version"
    monkeypatch.setattr(execution, "_DRIVER", file)
    assert execution.gpu() == GPU("NVIDIA H100", (9, 0), "")
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC: 12.2\n")
    assert execution.gpu().driver == "580"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert execution.gpu().driver == "550"


# Quantization


@pytest.mark.parametrize(("asked", "least"), [("fp8", 0.95), ("fp8_mlp_only", 0.97), ("fp4", 0.65)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_quantized_rows_are_near(tmp_path, family, asked, least):
    """Random weights tolerate few errors; test_smollm2.py has real ones."""
    checkpoint = read(save(tmp_path, _fused(family)), "m")
    batch = Batch.pack(sequences())
    compute = gpu_compute("bf16", QuantizationType(asked), checkpoint, (12, 0))
    peaks = input_peaks(checkpoint, compute.products, [batch])
    assert min(peaks.values()) > 0
    quantized = Interpreted(checkpoint, EngineOptions(), compute=compute, peaks=peaks)
    exact = TorchEngine(checkpoint, FP32).run(batch)
    assert cosines(quantized.run(batch), exact).min() >= least


def test_an_expert_that_no_text_chose_has_the_peak_of_the_others(tmp_path):
    checkpoint = read(save(tmp_path, random_model("qwen3_moe")), "m")
    products = gpu_compute("bf16", QuantizationType.FP8, checkpoint, (12, 0)).products
    peaks = input_peaks(checkpoint, products, [Batch.pack([[7]])])
    assert set(peaks) == set(products)
    for i in range(len(checkpoint.spec.layers)):
        ups = [peaks[f"layers.{i}.experts.{expert}.up"] for expert in range(8)]
        downs = [peaks[f"layers.{i}.experts.{expert}.down"] for expert in range(8)]
        assert len(set(ups)) == 1, "all experts read the same states"
        assert len(set(downs)) == 2, "two are chosen, and the others have the larger peak"
        assert sorted(downs)[1] == max(downs)


@pytest.mark.parametrize(
    ("asked", "capability", "refusal"),
    [
        ("fp8", (8, 0), "FP8 quantization is only supported on L4, H100"),
        ("fp4", (9, 0), "FP4 quantization is only supported on B200"),
        ("weights_int8", (9, 0), "no engine has it"),
    ],
)
def test_what_a_gpu_lacks_is_refused(tiny_checkpoint, asked, capability, refusal):
    with pytest.raises(SetupError, match=refusal):
        gpu_compute("bf16", QuantizationType(asked), tiny_checkpoint, capability)
