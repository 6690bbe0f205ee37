"""LoRA adapters in peft's layout: the base with the products added, as merge_and_unload makes it, or a refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.checkpoint.sources import fetch, load
from bei.errors import SetupError
from tests.support.saved import CONFIG, TARGETS, adapter, settings
from tests.support.tiny_models import change_module, random_model, save, write_json, write_modules


def same(checkpoint, base: Path, worth: dict[str, torch.Tensor], folder: Path) -> None:
    save_file({name: of.contiguous() for name, of in worth.items()}, base / "model.safetensors", {"format": "pt"})
    expected = read(base, "m").tensors
    assert set(checkpoint) == set(expected)
    for name in expected:
        np.testing.assert_allclose(checkpoint[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def loaded(folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    tensors = load(settings("LOCAL", str(folder), tmp_path)).tensors
    return {name: tensors[name] for name in tensors}


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ({}, {}),
        ({"use_rslora": True}, {}),
        ({"rank_pattern": {"query": 2, "Wqkv": 2, "q_proj": 2}}, {"query": 2, "Wqkv": 2, "q_proj": 2}),
        ({"alpha_pattern": {"query": 32, "attn.Wqkv": 32, "self_attn.q_proj": 3.5}}, {}),
        ({"init_lora_weights": "gaussian", "use_dora": False, "layer_replication": None}, {}),
    ],
)
@pytest.mark.parametrize("family", TARGETS)
def test_the_base_with_the_products_added(tmp_path, family, config, ranks):
    base = save(tmp_path / "base", random_model(family))
    worth = adapter(tmp_path / "adapter", base, family, ranks, **config)
    same(loaded(tmp_path / "adapter", tmp_path), base, worth, tmp_path / "adapter")


@pytest.mark.parametrize(("family", "prefix"), [("bert", "bert."), ("qwen3", "model.")])
def test_an_adapter_of_a_class_with_a_head(tmp_path, family, prefix):
    """It was trained inside a class whose names begin with the family's prefix, and the base was saved without it."""
    base = save(tmp_path / "base", random_model(family))
    own = load_file(base / "model.safetensors")
    worth = adapter(tmp_path / "adapter", base, family, prefix="" if next(iter(own)).startswith(prefix) else prefix)
    same(loaded(tmp_path / "adapter", tmp_path), base, worth, tmp_path / "adapter")


def test_pickled_adapters_and_bases(tmp_path):
    base = save(tmp_path / "base", random_model("bert"))
    worth = adapter(tmp_path / "adapter", base, "bert")
    for folder, name in ((tmp_path / "adapter", "adapter_model"), (base, "model")):
        file = folder / f"{name}.safetensors"
        torch.save(
            load_file(file), folder / f"{name.replace('model', 'pytorch_model') if folder == base else name}.bin"
        )
        file.unlink()
    found = loaded(tmp_path / "adapter", tmp_path)
    (base / "pytorch_model.bin").unlink()
    same(found, base, worth, tmp_path / "adapter")


def test_a_head_that_was_saved_whole(tmp_path):
    """modules_to_save, and biases (`bias: all`), in place of the base's."""
    base = save(tmp_path / "base", random_model("bert"), pooling=None)
    own = tmp_path / "adapter"
    worth = adapter(own, base, "bert", prefix="bert.", task_type="SEQ_CLS", bias="all", modules_to_save=["classifier"])
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    whole = {"classifier.weight": torch.rand(3, 48), "classifier.bias": torch.rand(3)}
    bias = {"encoder.layer.0.attention.self.query.bias": torch.rand(48)}
    saved = load_file(own / "adapter_model.safetensors")
    saved |= {f"base_model.model.{name}": of for name, of in whole.items()}
    saved |= {f"base_model.model.bert.{name.replace('.bias', '.base_layer.bias')}": of for name, of in bias.items()}
    save_file(saved, own / "adapter_model.safetensors")
    with pytest.raises(SetupError, match=r"task_type SEQ_CLS needs a config\.json beside it"):
        load(settings("LOCAL", str(own), tmp_path))
    config = json.loads((base / "config.json").read_text()) | labels
    write_json(own / "config.json", config)
    checkpoint = load(settings("LOCAL", str(own), tmp_path))
    assert (checkpoint.task, checkpoint.labels) == ("classifier", ("a", "b", "c"))
    found = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    write_json(base / "config.json", config)
    same(found, base, worth | whole | bias, own)


def test_embeddings(tmp_path):
    base = save(tmp_path / "base", random_model("bert"))
    worth = adapter(tmp_path / "adapter", base, "bert")
    saved, name = load_file(tmp_path / "adapter" / "adapter_model.safetensors"), "embeddings.word_embeddings"
    rows = len(worth[f"{name}.weight"])
    a, b = torch.rand(4, rows), torch.rand(48, 4)
    saved |= {f"base_model.model.{name}.lora_embedding_{side}": of for side, of in (("A", a), ("B", b))}
    save_file(saved, tmp_path / "adapter" / "adapter_model.safetensors")
    worth[f"{name}.weight"] = worth[f"{name}.weight"] + 2 * (b @ a).T
    same(loaded(tmp_path / "adapter", tmp_path), base, worth, tmp_path / "adapter")


def test_fan_in_fan_out(tmp_path):
    """Of a square matrix the config says which way it lies; of another one its shape does."""
    base = save(tmp_path / "base", random_model("bert"))
    worth = adapter(tmp_path / "adapter", base, "bert", fan_in_fan_out=True)
    plain = load_file(base / "model.safetensors")
    for name, of in worth.items():
        if of.shape == (48, 48):
            worth[name] = plain[name] + (of - plain[name]).T
    same(loaded(tmp_path / "adapter", tmp_path), base, worth, tmp_path / "adapter")


def test_an_adapter_in_a_module_of_sentence_transformers(tmp_path):
    base = save(tmp_path / "base", random_model("bert"), pooling=None)
    folder = tmp_path / "adapter"
    worth = adapter(folder / "0_Transformer", base, "bert")
    write_modules(folder, {"Transformer": "0_Transformer", "Pooling": "1_Pooling"})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    checkpoint = load(settings("LOCAL", str(folder), tmp_path))
    assert checkpoint.spec.pooling.modes == ("mean",)
    found = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    same(found, base, worth, folder)
    change_module(folder, 0, path="")
    (folder / "adapter_config.json").write_bytes((folder / "0_Transformer" / "adapter_config.json").read_bytes())
    change_module(folder, 1, path="0_Transformer")
    with pytest.raises(SetupError):
        load(settings("LOCAL", str(folder), tmp_path))


def test_the_plan_of_an_adapter_is_its_own(tmp_path):
    """The hash by which engines keep their plans has the adapter's files, names and numbers in it."""
    base = save(tmp_path / "base", random_model("bert"))
    own, seen = tmp_path / "adapter", set()
    for config in ({}, {"lora_alpha": 16}, {"fan_in_fan_out": True}):
        adapter(own, base, "bert", **config)
        seen.add(load(settings("LOCAL", str(own), tmp_path)).tensors.fingerprint(tmp_path / "notes"))
    saved = load_file(own / "adapter_model.safetensors")
    save_file({name: 2 * of for name, of in saved.items()}, own / "adapter_model.safetensors")
    seen.add(load(settings("LOCAL", str(own), tmp_path)).tensors.fingerprint(tmp_path / "notes"))
    seen.add(load(settings("LOCAL", str(base), tmp_path)).tensors.fingerprint(tmp_path / "notes"))
    assert len(seen) == 5


REFUSED = {
    r"peft_type 'IA3' is not supported; supported: LORA": {"peft_type": "IA3"},
    "use_dora: DoRA is not read; merge it with peft": {"use_dora": True},
    "lora_bias: biases of an adapter": {"lora_bias": True},
    "layer_replication: layers": {"layer_replication": [[0, 2]]},
    "trainable_token_indices: tokens": {"trainable_token_indices": [1]},
    "target_parameters: adapters of experts": {"target_parameters": ["x"]},
    "init_lora_weights 'pissa' changes the base": {"init_lora_weights": "pissa"},
    "has rank 4, and `r` is 8": {"r": 8},
    "`lora_alpha` must be a number, not 'x'": {"lora_alpha": "x"},
    r"rank_pattern: '\(a\+\)\+\$' is not supported": {"rank_pattern": {"(a+)+$": 4}},
    "`base_model_name_or_path` must name the base, not None": {"base_model_name_or_path": None},
    "`base_model_name_or_path` must name the base, not 'xxx": {"base_model_name_or_path": "x" * 5000},
    r"base_model_name_or_path: '/no/such' is not a Hugging Face": {"base_model_name_or_path": "/no/such"},
    r"base_model_name_or_path: '\.\./\.\./x' is not a Hugging Face": {"base_model_name_or_path": "../../x"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_adapters_are_refused_by_name(tmp_path, message):
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    write_json(tmp_path / "adapter" / "adapter_config.json", stated | REFUSED[message])
    with pytest.raises(SetupError, match=message) as caught:
        load(settings("LOCAL", str(tmp_path / "adapter"), tmp_path))
    assert "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.layer.7.attention.self.query.lora_A.weight", (4, 48), "the base has no"),
        ("encoder.layer.0.attention.self.query.lora_A.weight", (4, 47), r"is of shape \(48, 47\), and the base's of"),
        ("encoder.layer.0.attention.self.query.lora_B.weight", (48, 3), "needs lora_A"),
        ("encoder.layer.0.attention.self.query.lora_A.weight", (0, 48), "needs lora_A"),
        ("another.weight", (4,), "does not account for: another.weight"),
        ("encoder.layer.0.attention.self.query.lora_magnitude_vector", (48,), "does not account for"),
    ],
)
def test_tensors_that_fit_nothing(tmp_path, name, shape, message):
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{name}": torch.ones(shape)}, file)
    with pytest.raises(SetupError, match=message):
        load(settings("LOCAL", str(tmp_path / "adapter"), tmp_path))


def test_an_adapter_of_another_base(tmp_path):
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert", prefix="another.")
    with pytest.raises(SetupError, match=r"the base has no 'another\.encoder\.layer\.0.*is it the adapter's base"):
        load(settings("LOCAL", str(tmp_path / "adapter"), tmp_path))


def test_a_base_that_is_an_adapter(tmp_path):
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert")
    write_json(base / "adapter_config.json", CONFIG)
    with pytest.raises(SetupError, match="is an adapter itself; merge it with peft"):
        fetch(settings("LOCAL", str(tmp_path / "adapter"), tmp_path))


def test_a_downloaded_adapter_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    """The maker of a checkpoint is trusted with none; the base is then a repository."""
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert")
    monkeypatch.setattr("bei.checkpoint.wheels.find", lambda repo: tmp_path / "adapter" if repo == "org/tiny" else None)
    with pytest.raises(SetupError, match=r"base_model_name_or_path: '/.*base' is not a Hugging Face repository id"):
        fetch(settings("HF", "org/tiny", tmp_path))


@pytest.mark.parametrize("revision", ["../../../../x", "/etc", "a/../../b"])
def test_a_base_s_revision_leads_nowhere_else(tmp_path, revision):
    """The hub's library makes a path of it, to read and to write."""
    base = save(tmp_path / "base", random_model("bert"))
    adapter(tmp_path / "adapter", base, "bert", base_model_name_or_path="org/base", revision=revision)
    with pytest.raises(SetupError, match=r"adapter_config\.json: `revision` '.*' is no branch, tag or commit"):
        fetch(settings("LOCAL", str(tmp_path / "adapter"), tmp_path))


def test_a_base_on_the_hub(tmp_path, monkeypatch):
    base = save(tmp_path / "base", random_model("bert"))
    worth = adapter(tmp_path / "adapter", base, "bert", base_model_name_or_path="org/base")
    monkeypatch.setattr("bei.checkpoint.wheels.find", lambda repo: {"org/base": base}.get(repo))
    same(loaded(tmp_path / "adapter", tmp_path), base, worth, tmp_path / "adapter")
