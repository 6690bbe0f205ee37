"""voyage-4-nano and pplx-embed have no class in transformers: they are its Qwen3 without the causal mask, and the
layers after it that are written out here."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.errors import SetupError
from tests.support.parity import cosines, reference, sequences
from tests.support.tiny_models import change_module, random_model, save, write_json, write_modules

HIDDEN, OUTPUTS = 48, 80


def saved_as(folder, model, config: dict, tensors: dict[str, torch.Tensor]):
    """The model's folder with other fields in its config.json and more tensors, all of its own below `model.`."""
    save(folder, model)
    own = {f"model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(own | tensors, folder / "model.safetensors")
    stated = {key: value for key, value in model.config.to_dict().items() if key not in ("is_causal", "id2label")}
    write_json(folder / "config.json", stated | {"use_bidirectional_attention": True} | config)
    return folder


@pytest.fixture
def qwen3():
    return random_model("qwen3", is_causal=False)


@pytest.fixture
def voyage(tmp_path, qwen3):
    torch.manual_seed(1)
    linear = 0.2 * torch.randn(OUTPUTS, HIDDEN)
    own = {"num_labels": OUTPUTS, "auto_map": {"AutoModel": "modeling.Qwen3BidirectionalModel"}}
    folder = saved_as(tmp_path, qwen3, {**own, "architectures": ["Qwen3BidirectionalModel"]}, {"linear.weight": linear})
    return folder, linear.numpy()


def pooled(states: np.ndarray, lengths: list[int]) -> np.ndarray:
    return np.stack([part.mean(0) for part in np.split(states, np.cumsum(lengths)[:-1])])


def test_voyage_projects_every_token(make, qwen3, voyage):
    folder, linear = voyage
    checkpoint, ids = read(folder, "voyage-4-nano"), sequences()
    states = reference(qwen3, ids) @ linear.T
    engine = make(checkpoint, precision="fp32")
    assert np.abs(engine.run(Batch.pack(ids, row_kind="tokens")) - states).max() <= 2e-5 * np.abs(states).max()
    rows = pooled(states, [len(s) for s in ids])
    order = np.random.default_rng(1).permutation(len(ids))
    found = engine.run(Batch.pack([ids[i] for i in order]))
    assert np.abs(found - rows[order]).max() <= 2e-5 * np.abs(rows).max()
    assert cosines(make(checkpoint, precision="bf16").run(Batch.pack(ids)), rows).min() >= 0.9995


def test_a_causal_qwen3_has_no_projection(voyage):
    """`num_labels` of a decoder is the size of a classifier that it does not have."""
    folder, _ = voyage
    write_json(folder / "config.json", random_model("qwen3").config.to_dict() | {"num_labels": OUTPUTS})
    with pytest.raises(SetupError, match=r"does not account for: linear\.weight"):
        read(folder, "m")


@pytest.fixture
def pplx(tmp_path, qwen3):
    own = {"AutoModel": "modeling.PPLXQwen3Model"}
    config = {"model_type": "bidirectional_pplx_qwen3", "architectures": ["PPLXQwen3Model"], "auto_map": own}
    folder = saved_as(tmp_path, qwen3, config, {})
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling", "FlexibleQuantizer": ""})
    change_module(folder, 2, type="st_quantize.FlexibleQuantizer", kwargs=["quantization"])
    return folder


def test_pplx_s_numbers_are_of_eight_bits(make, qwen3, pplx, caplog):
    checkpoint, ids = read(pplx, "pplx-embed-v1"), sequences()
    states = reference(qwen3, ids)
    expected = np.tanh(pooled(states, [len(s) for s in ids])) * 127
    engine = make(checkpoint, precision="fp32")
    rows = engine.run(Batch.pack(ids))
    assert np.array_equal(rows, np.round(rows))
    assert np.abs(rows).max() > 64
    assert np.abs(rows - expected).max() <= 0.5 + 127 * 2e-5 * np.abs(states).max()
    assert np.abs(engine.run(Batch.pack(ids, row_kind="tokens")) - states).max() <= 2e-5 * np.abs(states).max()
    assert cosines(make(checkpoint, precision="bf16").run(Batch.pack(ids)), expected).min() >= 0.999
    assert "code of its own" not in caplog.text


def test_another_module_of_that_file_is_refused(pplx):
    change_module(pplx, 2, type="st_quantize.AnotherQuantizer")
    with pytest.raises(SetupError, match="AnotherQuantizer' is code of the repository's own"):
        read(pplx, "m")


def test_pplx_is_never_causal(pplx, qwen3):
    config = qwen3.config.to_dict() | {"model_type": "bidirectional_pplx_qwen3", "use_bidirectional_attention": False}
    write_json(pplx / "config.json", config)
    with pytest.raises(SetupError, match="use_bidirectional_attention False is not supported"):
        read(pplx, "m")
