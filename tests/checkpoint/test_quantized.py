"""Checkpoints stored in fp8: their numbers and scales unchanged on engines with eight bits, and dequantized on the
others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.compute import Compute
from bei.engines.quantization import gpu_compute
from bei.engines.small_floats import stored_fp8
from bei.engines.torch.engine import TorchEngine
from bei.engines.torch.peaks import input_peaks
from bei.engines.torch.weights import Weights
from bei.errors import SetupError
from bei.settings.block import QuantizationType
from tests.support.parity import sequences
from tests.support.tiny_models import random_model, save

FP32 = EngineOptions(precision="fp32", threads=1)
LAYOUTS = {"modelopt": False, "compressed-tensors": True}
"""Whether each row has a scale, or the whole matrix; modelopt also states one for inputs."""


def quantize(folder: Path, by_rows: bool, scales: bool = True) -> dict[str, torch.Tensor]:
    """Converts the layers' matrices to fp8 in place; returns their dequantized values."""
    file, worth = folder / "model.safetensors", {}
    stored = load_file(file)
    for name, weight in list(stored.items()):
        worth[name] = weight
        if not name.endswith("_proj.weight"):
            continue
        scale = (weight.abs().amax(1, keepdim=True) if by_rows else weight.abs().amax()) / 448
        stored[name] = (weight / scale).to(torch.float8_e4m3fn)
        worth[name] = stored[name].float() * scale
        module = name.removesuffix(".weight")
        if scales:
            stored[f"{module}.weight_scale"] = scale
        if not by_rows:
            stored[f"{module}.input_scale"] = torch.tensor(0.01 if "q_proj" in name else 0.02)
            stored[f"{module}.k_scale"] = torch.tensor(1.0)
    save_file(stored, file, {"format": "pt"})
    return worth


@pytest.fixture(params=LAYOUTS)
def folders(request, tmp_path) -> tuple[Path, Path, bool]:
    """One folder in fp8, one with the dequantized values, and whether each row has a scale."""
    by_rows = LAYOUTS[request.param]
    model = random_model("llama", hidden_size=128, intermediate_size=256, num_attention_heads=2)
    stored, exact = (save(tmp_path / name, model) for name in ("stored", "exact"))
    save_file(quantize(stored, by_rows), exact / "model.safetensors", {"format": "pt"})
    return stored, exact, by_rows


def test_an_engine_without_eight_bits_computes_what_they_are_worth(folders):
    stored, exact = (read(folder, "m") for folder in folders[:2])
    batch = Batch.pack(sequences())
    np.testing.assert_allclose(TorchEngine(stored, FP32).run(batch), TorchEngine(exact, FP32).run(batch), atol=1e-5)


def test_one_with_them_takes_them_as_they_are(folders):
    stored, exact, by_rows = read(folders[0], "m"), read(folders[1], "m"), folders[2]
    compute = gpu_compute("bf16", QuantizationType.NO_QUANT, stored, (9, 0))
    assert (compute.quantization, compute.format, len(compute.products)) == ("fp8", "fp8", 12)
    assert gpu_compute("bf16", QuantizationType.NO_QUANT, stored, (8, 0)) == Compute("bf16")
    weights = Weights(stored, torch.device("cpu"), compute)
    for product in compute.products:
        name = f"{product}.weight"
        numbers, scales = weights.eight_bits(name)
        np.testing.assert_allclose(numbers.float() * scales[:, None], exact.tensors[name], rtol=1e-6)
        np.testing.assert_array_equal(stored_fp8(stored.tensors, name)[1], scales)
    texts = [Batch.pack(sequences())]
    peaks = input_peaks(stored, compute.products, texts)
    if by_rows:
        assert peaks == input_peaks(exact, compute.products, texts), "as seen: the checkpoint states none"
    else:
        assert list(peaks.values()) == pytest.approx([0.02 * 448] * 12), "the largest of those that a product has"


def test_without_scales_it_is_refused(tmp_path):
    folder = save(tmp_path, random_model("llama"))
    quantize(folder, by_rows=False, scales=False)
    with pytest.raises(SetupError, match="float8 with no scale for it or for each row"):
        read(folder, "m")
