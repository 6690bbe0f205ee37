"""GLiNER's files: every key of gliner_config.json, its tensors, and an encoder that is named and not there."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint import sources
from bei.checkpoint.convert import convert
from bei.checkpoint.load import read
from bei.errors import SetupError
from bei.settings import Settings
from bei.tokenizer import Tokenizer
from tests.support.configs import tiny_config
from tests.support.gliner_models import MARKS, gliner, save_gliner
from tests.support.tiny_models import word_pieces, write_json

TRAINING = {
    **{"dropout": 0.4, "fine_tune": True, "max_neg_type_ratio": 1, "max_types": 25, "token_loss_coef": 1.0},
    **{"span_loss_coef": 1.0, "neg_spans_ratio": 1.0, "lr_encoder": "1e-5", "lr_others": "5e-5", "num_steps": 30000},
    **{"warmup_ratio": 0.1, "train_batch_size": 8, "eval_every": 5000, "log_dir": "logs", "root_dir": "a"},
    **{"train_data": "data.json", "val_data_dir": "none", "prev_path": "none", "save_total_limit": 10, "size_sup": -1},
    **{"shuffle_types": True, "random_drop": True, "scheduler_type": "cosine", "loss_alpha": -1, "loss_gamma": 0},
    **{"loss_reduction": "sum", "weight_decay_encoder": 0.1, "weight_decay_other": 0.01, "max_grad_norm": 10.0},
    **{"has_rnn": True, "freeze_token_rep": False, "decoder_loss_coef": 0.5, "blank_entity_prob": 0.1},
}
NAMES = {"name": "tiny", "transformers_version": "4.38.2", "model_name": "a/tiny-encoder", "id_to_classes": None}
RUNNING = {"_attn_implementation": None, "num_post_fusion_layers": 1}
OF_OTHERS = {
    **{"labels_encoder_config": None, "labels_decoder_config": None, "decoder_mode": None, "triples_layer": None},
    **{"full_decoder_context": True, "embed_rel_token": True, "rel_token_index": -1, "rel_token": "<<REL>>"},
}
"""Of a second encoder, a decoder or relations, without which they mean nothing."""
WITHOUT_EFFECT = {**TRAINING, **NAMES, **RUNNING, **OF_OTHERS}
OPTIONS = {"span_encoder_config": None, "precomputed_prompts_mode": None}


@pytest.fixture
def folder(tmp_path):
    return save_gliner(tmp_path / "model", gliner())


def change(folder, **fields):
    config = json.loads((folder / "gliner_config.json").read_text())
    config = {key: value for key, value in {**config, **fields}.items() if value != "absent"}
    write_json(folder / "gliner_config.json", config)


def refusal(folder) -> str:
    with pytest.raises(SetupError) as refused:
        Tokenizer(read(folder, "tiny"))
    return str(refused.value)


def outcome(folder) -> str:
    """Everything that we derive from the config, or the refusal."""
    try:
        checkpoint = read(folder, "tiny")
        head = checkpoint.gliner
        Tokenizer(checkpoint)
        return repr((checkpoint.spec, checkpoint.max_tokens, {**vars(head), "tensors": sorted(head.tensors)}))
    except SetupError as refused:
        return str(refused)


def others(value: Any):
    match value:
        case None:
            return (True, 3, "strange", {"strange": 1.0})
        case bool():
            return (not value,)
        case int() | float():
            return (value + 6, 7)
        case str():
            return ("strange", "token_level")
        case dict():
            return ({**value, "num_hidden_layers": 1},)


def test_every_key_of_the_config(folder):
    change(folder, **WITHOUT_EFFECT, **OPTIONS)
    config = json.loads((folder / "gliner_config.json").read_text())
    expected = outcome(folder)
    assert expected.startswith("(EncoderSpec")
    silent = set()
    for key, value in config.items():
        found = set()
        for other in others(value):
            change(folder, **{key: other})
            found.add(outcome(folder))
        change(folder, **{key: value})
        silent |= {key} if found == {expected} else set()
    assert silent == WITHOUT_EFFECT.keys() | {"vocab_size"}  # which the encoder's own config has


def test_silence_means_the_library_s_default(folder):
    """BaseGLiNERConfig: 12 words in a span, 384 in a text, a hidden size of 512, one layer of RNN, markerV0."""
    change(folder, max_width="absent", max_len="absent", span_mode="absent", num_rnn_layers="absent")
    change(folder, subtoken_pooling="absent", embed_ent_token="absent", ent_token="absent", sep_token="absent")
    change(folder, class_token_index=-1)
    head = read(folder, "tiny").gliner
    assert (head.max_width, head.max_words, head.span_mode, head.rnn_layers) == (12, 384, "markerV0", 1)
    assert (head.pooling, head.first_of_label, head.mark, *head.after) == ("first", False, *MARKS[1:])
    change(folder, hidden_size="absent")
    assert "has shape" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"labels_encoder": "a/b"}, "labels_encoder 'a/b': the model reads labels by a second encoder"),
        ({"labels_decoder": "gpt2"}, "labels_decoder"),
        ({"relations_layer": "biaffine"}, "relations_layer"),
        ({"span_encoder_config": {"model_type": "rnn"}}, "span_encoder_config"),
        ({"span_mode": "markerV2"}, "span_mode 'markerV2' is not supported; supported: marker, markerV0, token_level"),
        ({"model_type": "gliner_streaming_span"}, "model_type"),
        ({"words_splitter_type": "spacy"}, "words_splitter_type"),
        ({"fuse_layers": True}, "fuse_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": 31}, "hidden_size 31 must be even"),
        ({"max_width": 0}, "max_width"),
        ({"max_len": "12"}, "max_len"),
        ({"num_rnn_layers": 1 << 30}, "num_rnn_layers"),
        ({"num_rnn_layers": 0}, "does not account for"),
        ({"num_rnn_layers": 2}, "tensors missing"),
        ({"span_mode": "token_level"}, "tensors missing"),
        ({"span_mode": "marker"}, "tensors missing"),
        ({"class_token_index": 5}, "class_token_index is 5"),
        ({"class_token_index": "5"}, "class_token_index"),
        ({"ent_token": "[ENT]"}, "'[ENT]' has id None"),
        ({"ent_token": ""}, "ent_token"),
        ({"encoder_config": None}, "put config.json and the tokenizer of 'a/tiny-encoder' beside it"),
        ({"encoder_config": {"model_type": "strange"}}, "model_type 'strange' is not supported"),
        ({"encoder_config": {"model_type": "llama"}}, "lacks"),
    ],
    ids=lambda of: str(of)[:50],
)
def test_refusals(folder, fields, named):
    change(folder, **fields)
    assert named in refusal(folder)


@pytest.mark.parametrize("change_of", ["missing", "left over", "shape", "type"])
def test_tensors_are_checked(folder, change_of):
    name = "prompt_rep_layer.3.weight"
    tensors = load_file(folder / "model.safetensors")
    match change_of:
        case "missing":
            del tensors[name]
        case "left over":
            tensors["cross_fuser.weight"] = torch.zeros(2)
        case "shape":
            tensors[name] = tensors[name][:, :3].contiguous()
        case "type":
            tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    assert {"left over": "cross_fuser.weight"}.get(change_of, name) in refusal(folder)


def test_an_encoder_that_is_named(tmp_path, folder):
    """As urchade's own models are: no encoder_config, no tokenizer, and marks that no tokenizer has yet."""
    expected = read(folder, "tiny")
    encoder, bare = tmp_path / "encoder", tmp_path / "bare"
    shutil.copytree(folder, bare)
    stated = json.loads((folder / "gliner_config.json").read_text())["encoder_config"]
    write_json(encoder / "config.json", {**stated, "vocab_size": 1000})
    word_pieces().save(str(encoder / "tokenizer.json"))
    shutil.move(bare / "tokenizer_config.json", encoder / "tokenizer_config.json")
    (encoder / "model.safetensors").write_bytes(b"the encoder's own, which is not read")
    (bare / "tokenizer.json").unlink()
    change(bare, encoder_config="absent", class_token_index=-1, vocab_size=-1, model_name=str(encoder))
    settings = Settings.load(tiny_config(bare), environ={}, cache_dir=tmp_path / "cache")
    found = sources.load(settings)
    assert found.spec == expected.spec
    assert all(np.array_equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    windows = [Tokenizer(of).words.read(["a cat sat"], {"cat": "cat"}, truncate=True) for of in (found, expected)]
    assert windows[0].windows[0].encoding.ids.tolist() == windows[1].windows[0].encoding.ids.tolist()


def test_an_encoder_that_cannot_be_had(tmp_path, folder):
    change(folder, encoder_config="absent", model_name="a/tiny-encoder")
    settings = Settings.load(tiny_config(folder), environ={}, cache_dir=tmp_path / "cache")
    with pytest.raises(SetupError, match="model_name: a/tiny-encoder cannot be downloaded"):
        sources.load(settings)


def test_converted(tmp_path):
    folder = save_gliner(tmp_path / "model", gliner(), pickled=True)
    convert(folder, tmp_path / "out", "tiny")
    assert not list((tmp_path / "out").glob("*.bin"))
    before, after = (read(of, "tiny").gliner.tensors for of in (folder, tmp_path / "out"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
