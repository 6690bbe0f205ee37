"""Hostile checkpoints: each gives one line of ours, at once, and nothing outside their folder is read."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bei.checkpoint.load import read
from bei.checkpoint.tensors import scan
from bei.errors import SetupError
from bei.tokenizer import Tokenizer
from tests.support.tiny_models import LETTERS, change_module, random_model, save, write_json


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", random_model("bert"))


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, content | changes)


ELSEWHERE = ["../other/model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..", "a\0b", 7, None, ["x"]]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_that_names_a_file_elsewhere(folder, name):
    other = folder.parent / "other" / "model.safetensors"
    other.parent.mkdir()
    other.write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()  # a single file would come before the index
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"embeddings.word_embeddings.weight": name}})
    with pytest.raises(SetupError, match=r"model\.safetensors\.index\.json names .*, which is not inside"):
        read(folder, "m")


@pytest.mark.parametrize("path", ELSEWHERE)
def test_modules_elsewhere(folder, path):
    change_module(folder, 1, path=path)
    with pytest.raises(SetupError, match=r"modules\.json names .*, which is not inside"):
        read(folder, "m")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**9, 0, -1, 1.5, "3", True, [3], 10**30)),
        *(("hidden_size", value) for value in (10**9, 0, -48, 48.0, "48", float("nan"))),
        *(("num_attention_heads", value) for value in (0, 10**9, 5, -4)),
        *(("layer_norm_eps", value) for value in (float("nan"), float("inf"), "1e-12", [1], True)),
        *(("vocab_size", value) for value in (-1, 10**12, "x")),
        *(("max_position_embeddings", value) for value in (-1, 10**12, "x", 0)),
        *(("type_vocab_size", value) for value in (-1, 10**12, "x")),
        ("model_type", ["bert"]),
        ("hidden_act", {"a": 1}),
        ("position_embedding_type", [[]]),
    ],
)
def test_what_no_config_says(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(SetupError) as caught:
        Tokenizer(read(folder, "m"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 100_000, b"[]", b"7", b"\xff\xfe", b'{"x": 1' + b"0" * 9999]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "1_Pooling/config.json"])
def test_what_is_no_json_object(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(SetupError, match=name):
        read(folder, "m")


def test_a_json_file_is_bounded(folder, monkeypatch):
    monkeypatch.setattr("bei.checkpoint.modules._MAX_OTHER", 100)
    with pytest.raises(SetupError, match="is larger than 100 bytes"):
        read(folder, "m")


def test_and_in_what_it_takes_in_memory(folder):
    """100 MB of empty objects under an unread key took 2.5 GB."""
    config = (folder / "config.json").read_bytes().rstrip()
    (folder / "config.json").write_bytes(config[:-1] + b',"x":[' + b"{}," * (12 << 20) + b"0]}")
    with pytest.raises(SetupError, match=r"config\.json is larger than 33554432 bytes"):
        read(folder, "m")


def file_of(header: object, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "length beyond the file": file_of({}, 10**6),
    "length of everything": file_of({}, 2**64 - 1),
    "length of nothing": file_of({}, 0),
    "overlap": file_of({"a": tensor([8], [0, 32]), "b": tensor([8], [16, 48])}),
    "a hole": file_of({"a": tensor([8], [32, 64])}),
    "negative": file_of({"a": tensor([16], [-64, 0])}),
    "backwards": file_of({"a": tensor([16], [64, 0])}),
    "beyond the end": file_of({"a": tensor([1000], [0, 4000])}),
    "shape overflows": file_of({"a": tensor([2**40, 2**40], [0, 64])}),
    "shape and size differ": file_of({"a": tensor([3], [0, 64])}),
    "negative shape": file_of({"a": tensor([-4, -4], [0, 64])}),
    "unknown type": file_of({"a": tensor([16], [0, 64], "F33")}),
    "deep": file_of(b'{"a":' * 50_000),
    "not an object": file_of([]),
    "not UTF-8": file_of(b"\xff\xff\xff\xff"),
    "empty": b"",
    "a folder": None,
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_safetensors(tmp_path, case):
    file = tmp_path / "model.safetensors"
    if HEADERS[case] is None:
        file.mkdir()
    else:
        file.write_bytes(HEADERS[case])
    with pytest.raises(SetupError, match="is truncated or not safetensors"):
        scan(file)


def retokenize(folder, change) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_word_without_an_embedding_is_refused_where_it_occurs(folder):
    def add(content):
        content["model"]["vocab"]["zebra"] = 4_000_000_000

    retokenize(folder, add)
    tokenizer = Tokenizer(read(folder, "m"))
    assert tokenizer.encode(["the cat"], truncate=True)
    with pytest.raises(Exception, match="for which the model has no embedding") as caught:
        tokenizer.encode(["the cat", "zebra"], truncate=True)
    assert caught.value.status == 422


def test_a_tagger_s_vocabulary_is_the_model_s(tmp_path):
    folder = save(tmp_path, random_model("bert", 0, "ForTokenClassification", id2label={0: "O", 1: "X"}), pooling=None)
    retokenize(folder, lambda content: content["model"]["vocab"].update(zebra=4_000_000_000))
    assert len(Tokenizer(read(folder, "m")).vocabulary) < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["post_processor"].update(cls=["[CLS]", 4_000_000]), "has no embedding"),
        (lambda c: c["model"].update(vocab={}), "is not a tokenizer"),
        (lambda c: c["model"].update(type="Pickle"), "is not a tokenizer"),
        (
            lambda c: c.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
            "is not",
        ),
        (lambda c: c.update(normalizer={"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}), "is not a tok"),
    ],
)
def test_hostile_tokenizers(folder, change, message):
    retokenize(folder, change)
    with pytest.raises(SetupError, match=message):
        Tokenizer(read(folder, "m"))


def test_types_without_an_embedding(folder):
    def change(content):
        parts = [{"SpecialToken": {"id": "[CLS]", "type_id": 9}}, {"Sequence": {"id": "A", "type_id": 9}}]
        token = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
        pair = [*parts, {"Sequence": {"id": "B", "type_id": 9}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": pair,
            "special_tokens": token,
        }

    retokenize(folder, change)
    with pytest.raises(SetupError, match="tokens or types around a text for which the model has no embedding"):
        Tokenizer(read(folder, "m"))


def test_a_panic_of_the_library_is_one_of_our_errors(folder, monkeypatch):
    class PanicException(BaseException):
        """As in pyo3: it is no Exception."""

    def panic(*args, **more):
        raise PanicException("index out of bounds")

    tokenizer = Tokenizer(read(folder, "m"))
    monkeypatch.setattr(tokenizer._reader, "_library", type("Library", (), {"encode_batch_fast": panic})())
    with pytest.raises(Exception, match="tokenizer error: index out of bounds") as caught:
        tokenizer.encode([LETTERS], truncate=True)
    assert caught.value.status == 422


def test_a_float8_header_says_nothing_that_was_not_checked(folder):
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "x.weight": np.zeros((2, 2), np.uint8)}, folder / "model.safetensors")
    with pytest.raises(SetupError, match="does not account for"):
        read(folder, "m")
