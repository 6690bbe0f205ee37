"""Names that training frameworks leave in a checkpoint, for every family; and never a wrong model by a wrong strip."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.architectures.families import FAMILIES as SERVED
from bei.checkpoint.load import read
from bei.errors import SetupError
from tests.support.tiny_models import FAMILIES, random_model, save, write_json

WRAPPERS = [
    *("module.", "_orig_mod.", "auto_model.", "0.auto_model.", "encoder.", "model.", "base_model."),
    *("module.model.", "model.encoder.", "module.encoder.", "_orig_mod.module.", "model.0.auto_model."),
]
LEFT = [
    *("embeddings.position_ids", "loss.weight", "loss_fct.weight", "criterion.centers", "optimizer.state.0.exp_avg"),
    *("lr_scheduler.step", "ema.weight", "bn.num_batches_tracked"),
]


def rename(folder, change, more=()):
    file = folder / "model.safetensors"
    stored = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file(stored | {name: torch.ones(2) for name in more}, file, {"format": "pt"})


def values(folder) -> dict[str, np.ndarray]:
    tensors = read(folder, "m").tensors
    return {name: tensors[name] for name in tensors}


@pytest.mark.parametrize("family", FAMILIES)
def test_wrappers_of_every_family(tmp_path, family):
    """Behind each wrapper the names are as the family has them, with each of its own prefixes."""
    folder = save(tmp_path / "m", random_model(family))
    expected, first = values(folder), load_file(folder / "model.safetensors")
    prefixes = SERVED[read_type(folder)].prefixes
    own = next((prefix for prefix in prefixes if prefix and all(name.startswith(prefix) for name in first)), "")
    for i, wrapper in enumerate(WRAPPERS):
        prefix = prefixes[i % len(prefixes)]
        names = {name: f"{wrapper}{prefix}{name.removeprefix(own)}" for name in first}
        save_file({names[name]: of for name, of in first.items()}, folder / "model.safetensors", {"format": "pt"})
        found = values(folder)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected), (wrapper, prefix)


def read_type(folder) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
def test_a_head_beside_a_wrapped_encoder(tmp_path, wrapper):
    labels = {0: "a", 1: "b", 2: "c"}
    folder = save(tmp_path / "m", random_model("bert", 0, "ForSequenceClassification", id2label=labels), pooling=None)
    expected = values(folder)
    rename(folder, lambda name: wrapper + name)
    found = values(folder)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrapper", ["", "module.", "0.auto_model."])
def test_what_training_leaves_is_left_out(tmp_path, wrapper):
    folder = save(tmp_path / "m", random_model("bert"))
    expected = values(folder)
    rename(folder, lambda name: wrapper + name, [wrapper + name for name in LEFT])
    found = values(folder)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda name: f"student.{name}", [], "no tensor 'embeddings.word_embeddings.weight'"),
        (lambda name: f"module.{name}", ["student.a.weight"], "does not account for: student.a.weight"),
        (lambda name: f"0.auto_model.{name}", ["2.linear.weight"], "does not account for: 2.linear.weight"),
        (lambda name: name, ["encoder.layer.3.output.dense.weight"], "does not account for: encoder.layer.3"),
        (lambda name: name.replace("layer.2.", "layer.9."), [], "tensors missing: encoder.layer.2"),
        (lambda name: f"module.{name}".replace("module.encoder.layer.2.", "layer.2."), [], "tensors missing"),
        (lambda name: f"model.{name}", ["module.embeddings.word_embeddings.weight"], "which of them is the model"),
        (lambda name: name, ["position_ids.weight"], "does not account for: position_ids.weight"),
    ],
)
def test_a_wrong_strip_serves_nothing(tmp_path, change, more, message):
    folder = save(tmp_path / "m", random_model("bert"))
    rename(folder, change, more)
    with pytest.raises(SetupError, match=message):
        read(folder, "m")


def test_two_tensors_of_one_name(tmp_path):
    folder = save(tmp_path / "m", random_model("bert"))
    rename(folder, lambda name: f"module.{name}", ["embeddings.LayerNorm.weight"])
    with pytest.raises(SetupError, match="are one tensor of the model; remove one of them"):
        read(folder, "m")


# -- quantized ---------------------------------------------------------------------------------------------------------

QUANTIZED = {
    r"GPTQ \(4 bits\)": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    r"AWQ \(4 bits\)": {"quant_method": "awq", "bits": 4},
    r"bitsandbytes \('4' bits\)": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    r"bitsandbytes \('8' bits\)": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    r"compressed-tensors \('int-quantized'\)": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    r"compressed-tensors \('pack-quantized'\)": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    r"ModelOpt \('NVFP4'\)": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    r"fp8 in blocks": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    r"MXFP4": {"quant_method": "mxfp4"},
    r"'another'": {"quant_method": "another"},
    r"None": {"bits": None},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_formats_that_are_not_read_are_refused_by_name(tmp_path, name):
    folder = save(tmp_path / "m", random_model("qwen3"))
    add_to_config(folder, quantization_config=QUANTIZED[name])
    with pytest.raises(SetupError, match=f"the weights are stored as {name}, which is not read; take the checkpoint"):
        read(folder, "m")


@pytest.mark.parametrize(
    "stated",
    [
        None,
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ],
)
def test_float8_is_read(tmp_path, stated):
    folder = save(tmp_path / "m", random_model("qwen3"))
    add_to_config(folder, quantization_config=stated)
    assert read(folder, "m").spec.hidden_size == 48


def add_to_config(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | keys)
