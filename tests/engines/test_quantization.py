"""The effect and the messages of quantization_type, with and without a GPU."""

import logging
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import pytest

from bei.checkpoint.load import read
from bei.engines import choice
from bei.engines.compute import Compute, Dtype, Quantization
from bei.engines.null import NullEngine
from bei.engines.quantization import fast_dtype, gpu_compute
from bei.errors import SetupError
from bei.settings import Settings
from bei.settings.block import QuantizationType
from tests.support.configs import tiny_config
from tests.support.tiny_models import random_model, save


def asking(quantization: str, **flags) -> Settings:
    config = tiny_config()
    config["trt_llm"]["build"] |= {"base_model": "encoder", "quantization_type": quantization}
    return Settings.load(config, environ={}, **flags)


class OnGPU(NullEngine):
    """A GPU that has every quantization."""

    def __init__(self, checkpoint, options):
        super().__init__(checkpoint)
        self.facts = replace(self.facts, quantization=str(options.quantization).replace("no_quant", "none"))


@pytest.mark.parametrize(
    ("asked", "engine", "said"),
    [
        ("fp8", NullEngine, "quantization_type fp8 is not available here: engine null serves in fp32"),
        ("fp4_mlp_only", NullEngine, "quantization_type fp4_mlp_only is not available here"),
        ("fp8_kv", OnGPU, "quantization_type fp8_kv: an encoder keeps no cache of keys and values; as fp8"),
        ("fp8_mlp_only", OnGPU, ""),
        ("no_quant", NullEngine, ""),
    ],
)
def test_what_is_not_as_asked_is_said(tiny_checkpoint, monkeypatch, caplog, asked, engine, said):
    monkeypatch.setattr(choice, "_class", lambda name: engine)
    with caplog.at_level(logging.WARNING, "bei"):
        choice.create(asking(asked, engine="null"), tiny_checkpoint)
    assert said in caplog.text
    assert bool(caplog.records) == bool(said)


def test_no_cpu_stands_in_for_a_gpu_that_lacks_it(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_NVIDIA", tmp_path)

    def ampere(name):
        if name == "native":
            return NullEngine
        return lambda checkpoint, options: gpu_compute("bf16", options.quantization, checkpoint, (8, 0))

    monkeypatch.setattr(choice, "_class", ampere)
    with pytest.raises(SetupError, match=r"FP8 quantization is only supported on L4, H100.*; this GPU has 80"):
        choice.create(asking("fp8"), tiny_checkpoint)


def test_what_tensorrt_refuses_torch_serves(tiny_checkpoint, monkeypatch, tmp_path, caplog):
    """There is a driver but no working GPU, so torch chooses the CPU."""
    monkeypatch.setattr(choice, "_NVIDIA", tmp_path)
    with caplog.at_level(logging.WARNING, "bei"):
        assert choice.create(asking("fp8"), tiny_checkpoint).facts.name == "torch"
    assert "engine tensorrt does not run here: " in caplog.text
    assert "quantization_type fp8 is not available here: engine torch serves in" in caplog.text


def test_what_runs_in_fewer_bits(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    checkpoint = read(save(tmp_path, random_model("llama", **sizes)), "m")
    asked = (QuantizationType.FP8, QuantizationType.FP8_KV, QuantizationType.FP4_MLP_ONLY)
    of = [gpu_compute("bf16", kind, checkpoint, (10, 0)) for kind in asked]
    assert [(c.quantization, c.format, len(c.products)) for c in of] == [
        ("fp8", "fp8", 12),
        ("fp8_kv", "fp8", 12),
        ("fp4_mlp_only", "fp4", 6),
    ]
    assert fast_dtype(checkpoint, (9, 0)) == "bf16"
    assert fast_dtype(checkpoint, (7, 5)) == "fp16"


def test_every_quantization_that_can_be_asked_for_is_one_of_an_engine(tiny_checkpoint):
    found = {"int8", "int4"}
    for kind in QuantizationType:
        with suppress(SetupError):
            found.add(gpu_compute("bf16", kind, tiny_checkpoint, (12, 0)).quantization)
    assert found == set(get_args(Quantization))


def test_only_the_products_of_a_quantization_have_its_numbers():
    compute = Compute("fp16", "fp8_mlp_only", ("layers.0.up",))
    assert (compute.format, compute.operands("layers.0.up"), compute.operands("layers.0.out")) == ("fp8", "fp8", "fp16")
    plain = Compute("bf16")
    assert (plain.quantization, plain.format, plain.operands("layers.0.up")) == ("none", "bf16", "bf16")


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_a_quantization_leaves_the_dtype_as_it_is(tiny_checkpoint, dtype):
    for kind in (QuantizationType.NO_QUANT, QuantizationType.FP4):
        assert gpu_compute(dtype, kind, tiny_checkpoint, (10, 0)).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "quantization", "said"),
    [("bf16", "none", "bf16"), ("bf16", "int8", "int8"), ("bf16", "int4", "int4"), ("fp16", "fp4_kv", "fp4_kv")],
)
def test_what_an_engine_computes_in_is_said_in_one_word(dtype, quantization, said):
    facts = replace(NullEngine.facts, precision=dtype, quantization=quantization)
    assert facts.computes_in == said


@pytest.mark.parametrize(
    ("asked", "capability", "refusal"),
    [
        ("fp8", (8, 9), None),
        ("fp8_mlp_only", (9, 0), None),
        (
            "fp8",
            (8, 8),
            "FP8 quantization is only supported on L4, H100, H200, B200 or newer (CUDA_COMPUTE>=89); this GPU has 88",
        ),
        ("fp4", (10, 0), None),
        ("fp4_mlp_only", (12, 0), None),
        (
            "fp4_kv",
            (9, 9),
            "FP4 quantization is only supported on B200 / Blackwell or newer (CUDA_COMPUTE>=100); this GPU has 99",
        ),
        ("weights_int8", (12, 0), "no engine has it; set fp8 or fp4"),
    ],
)
def test_a_quantization_needs_its_gpu(tiny_checkpoint, asked, capability, refusal):
    kind = QuantizationType(asked)
    if refusal is None:
        assert gpu_compute("bf16", kind, tiny_checkpoint, capability).quantization == asked
        return
    with pytest.raises(SetupError) as caught:
        gpu_compute("bf16", kind, tiny_checkpoint, capability)
    assert str(caught.value) == f"quantization_type {asked}: {refusal}"


def with_sizes(checkpoint, **changed):
    return replace(checkpoint, spec=replace(checkpoint.spec, **changed))


def test_products_of_eight_bits_have_sizes_of_16(tiny_checkpoint):
    def parts(checkpoint, asked="fp8") -> set[str]:
        products = gpu_compute("bf16", QuantizationType(asked), checkpoint, (9, 0)).products
        assert len(products) == 3 * len({name.split(".")[-1] for name in products})
        return {name.split(".")[-1] for name in products}

    assert parts(tiny_checkpoint) == {"qkv", "out", "up", "down"}
    assert parts(tiny_checkpoint, "fp8_mlp_only") == {"up", "down"}
    odd = with_sizes(tiny_checkpoint, intermediate_size=104)
    assert parts(odd) == {"qkv", "out"}
    assert parts(odd, "fp8_mlp_only") == set()


@pytest.mark.parametrize(
    ("stored", "causal", "capability", "dtype"),
    [
        ("float16", False, (9, 0), "fp16"),
        ("float16", True, (9, 0), "bf16"),
        ("bfloat16", False, (9, 0), "bf16"),
        ("float32", False, (8, 0), "bf16"),
        ("float32", False, (7, 5), "fp16"),
        ("bfloat16", True, (7, 9), "fp16"),
    ],
)
def test_the_dtype_of_a_gpu(tiny_checkpoint, stored, causal, capability, dtype):
    checkpoint = replace(with_sizes(tiny_checkpoint, causal=causal), dtype=stored)
    assert fast_dtype(checkpoint, capability) == dtype
