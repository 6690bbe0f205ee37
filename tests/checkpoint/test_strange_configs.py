"""Configs of adapters and of GLiNERs with values that nobody writes: each is obeyed, or refused in one line."""

import json

import pytest

from bei.checkpoint.load import read
from bei.checkpoint.sources import load
from bei.errors import SetupError
from bei.tokenizer import Tokenizer
from tests.support.gliner2_models import gliner2, save_gliner2
from tests.support.gliner_models import gliner, save_gliner
from tests.support.saved import adapter, settings
from tests.support.tiny_models import random_model, save, write_json

STRANGE = [
    *(None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", "a\0b", "..", "\x1b[2J", "/" * 5000),
    *([], ["x"], [[[]]], {}, {"a": {}}, {"(": 1}, {"query": -1}, {"query": "x"}, {"query": 10**30}),
]
OF_ADAPTERS = [
    *("peft_type", "base_model_name_or_path", "revision", "task_type", "r", "lora_alpha", "rank_pattern"),
    *("alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights", "bias", "modules_to_save"),
    *("target_modules", "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters"),
]
OF_THE_TENSORS = ("revision", "task_type", "bias", "modules_to_save", "target_modules", "layers_to_transform")
"""Of another source of the base, of a head that it lacks, and what the tensors' names say anyway."""


def edit(file, **changes):
    write_json(file, json.loads(file.read_text()) | changes)


def is_refused_in_one_line(made) -> bool:
    """Whether it is refused; the refusal is one printable line."""
    try:
        made()
    except SetupError as refusal:
        assert str(refusal).isprintable()
        assert len(str(refusal)) < 1000
        return True
    return False


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A folder with an adapter, and one with its base."""
    folder = tmp_path_factory.mktemp("adapted")
    base = save(folder / "base", random_model("bert"))
    adapter(folder / "adapter", base, "bert")
    return folder


@pytest.mark.parametrize("key", OF_ADAPTERS)
def test_what_no_adapter_config_says(adapted, key):
    file, place = adapted / "adapter" / "adapter_config.json", settings("LOCAL", str(adapted / "adapter"), adapted)
    before, refused = file.read_bytes(), []
    for value in STRANGE:
        edit(file, **{key: value})
        if is_refused_in_one_line(lambda: list(load(place).tensors.values())):
            refused.append(value)
        file.write_bytes(before)
    assert refused or key in OF_THE_TENSORS


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"[" * 200_000, b"\xff", b'{"peft_type": "LORA"'])
def test_an_adapter_config_that_is_no_object(adapted, content):
    file = adapted / "adapter" / "adapter_config.json"
    before = file.read_bytes()
    file.write_bytes(content)
    refused = is_refused_in_one_line(lambda: load(settings("LOCAL", str(adapted / "adapter"), adapted)))
    file.write_bytes(before)
    assert refused


OF_GLINERS = [
    *("model_type", "model_name", "max_width", "hidden_size", "subtoken_pooling", "span_mode", "max_len", "ent_token"),
    *("sep_token", "class_token_index", "vocab_size", "num_rnn_layers", "encoder_config", "words_splitter_type"),
    *("embed_ent_token", "fuse_layers", "labels_encoder", "represent_spans", "post_fusion_schema"),
]


@pytest.mark.parametrize(
    ("make", "file", "keys"),
    [
        (lambda folder: save_gliner(folder, gliner()), "gliner_config.json", OF_GLINERS),
        (
            lambda folder: save_gliner2(folder, gliner2()),
            "config.json",
            ["architecture", "token_pooling", "counting_layer", "span_head", "max_width", "model_type"],
        ),
        (lambda folder: save_gliner2(folder, gliner2()), "encoder_config/config.json", ["hidden_size", "model_type"]),
    ],
    ids=["GLiNER", "GLiNER2", "its encoder"],
)
def test_what_no_gliner_s_config_says(tmp_path, make, file, keys):
    folder = make(tmp_path / "model")
    before = (folder / file).read_bytes()
    for key in keys:
        for value in STRANGE:
            edit(folder / file, **{key: value})
            is_refused_in_one_line(lambda: Tokenizer(read(folder, "m")))
            (folder / file).write_bytes(before)
