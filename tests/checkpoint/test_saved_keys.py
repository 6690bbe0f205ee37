"""Every key of modules.json and config_sentence_transformers.json is read, refused, or known to change nothing."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from bei.checkpoint.load import read
from bei.errors import SetupError
from tests.support.tiny_models import random_model, save, write_json

PLACES = {"folder", "tensors", "tokenizer_file", "name", "revision"}
FILE = "config_sentence_transformers.json"
PROMPTS = {"prompts": {"query": "a ", "document": ""}, "default_prompt_name": "query"}
CHANGES: dict[str, dict[str, Any]] = {
    "embedder": {**PROMPTS, "similarity_fn_name": "dot", "truncate_dim": 8},
    "sparse": {**PROMPTS, "max_active_dims": 3},
    "reranker": {**PROMPTS, "activation_fn": "torch.nn.modules.linear.Identity"},
    "multi-vector": {**PROMPTS, "similarity_fn_name": "meanmaxsim"},
    "PyLate": {
        **{"query_prefix": "the ", "document_prefix": "the ", "query_length": 9, "document_length": 9},
        **{"attend_to_expansion_tokens": True, "skiplist_words": ["a"], "do_query_expansion": False},
        **{"similarity_fn_name": "meanmaxsim"},
    },
}
"""Another value of each key that is read, by the class that wrote the file."""
WITHOUT_EFFECT = {"__version__", "requirements", "keep_in_fp32_modules"}
OF_SPARSE = {"similarity_fn_name"}  # no route compares sparse vectors
PYLATE = {
    **{"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32},
    **{"document_length": 40, "attend_to_expansion_tokens": False, "skiplist_words": ["."]},
    **{"do_query_expansion": True, "similarity_fn_name": "MaxSim"},
}


def outcome(folder: Path) -> str:
    """Everything that is read of a folder, or the refusal."""
    try:
        checkpoint = read(folder, "m")
    except SetupError as refusal:
        return f"refused: {refusal}"
    return repr([getattr(checkpoint, field.name) for field in fields(checkpoint) if field.name not in PLACES])


LIBRARIES = {
    "embedder": (SentenceTransformer, ""),
    "sparse": (SparseEncoder, "ForMaskedLM"),
    "reranker": (CrossEncoder, "ForSequenceClassification"),
    "multi-vector": (MultiVectorEncoder, ""),
}
"""The class that saves each kind, and the head of its encoder."""


def made(kind: str, folder: Path) -> set[str]:
    """A folder as its library saves it; returns the keys of its configuration."""
    if kind == "PyLate":
        save(folder / "model", random_model("bert"), pooling=None)
        write_json(folder / "model" / FILE, PYLATE)
        return set(PYLATE)
    library, head = LIBRARIES[kind]
    labels = {"num_labels": 1} if kind == "reranker" else {}
    base = save(folder / "base", random_model("bert", 0, head, **labels), pooling=None)
    library(str(base), device="cpu").save_pretrained(str(folder / "model"))
    return set(json.loads((folder / "model" / FILE).read_text()))


@pytest.mark.parametrize("kind", CHANGES)
def test_every_key_of_the_saved_configuration(tmp_path, kind):
    keys = made(kind, tmp_path)
    known = CHANGES[kind].keys() | {"model_type"} | WITHOUT_EFFECT | (OF_SPARSE if kind == "sparse" else set())
    assert keys - known == set()
    file = tmp_path / "model" / FILE
    stated = {**json.loads(file.read_text()), **({} if kind == "PyLate" else {"prompts": {"query": "the "}})}
    write_json(file, stated)
    expected = outcome(tmp_path / "model")
    assert not expected.startswith("refused"), expected
    for key, value in {**CHANGES[kind], "model_type": "strange"}.items():
        write_json(file, {**stated, key: value})
        assert outcome(tmp_path / "model") != expected, key


def test_every_key_of_the_modules(tmp_path):
    folder = save(tmp_path, random_model("bert"))
    rows = json.loads((folder / "modules.json").read_text())
    expected = outcome(folder)
    changes = {"idx": 9, "name": "strange", "path": "strange", "type": "sentence_transformers.models.Strange"}
    for i, row in enumerate(rows):
        assert row.keys() == changes.keys()
        found = set()
        for key, value in {**changes, "kwargs": ["strange"]}.items():
            write_json(folder / "modules.json", [*rows[:i], {**row, key: value}, *rows[i + 1 :]])
            found |= {key} if outcome(folder) == expected else set()
        assert found == {"idx", "name", "kwargs"}, "names alone, and names of arguments that no request has"


@pytest.mark.parametrize("i", [0, 1])
def test_a_second_module_of_a_kind_is_refused(tmp_path, i):
    folder = save(tmp_path, random_model("bert"))
    rows = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*rows, rows[i]])
    with pytest.raises(SetupError, match=f"modules.json: a second {('Transformer', 'Pooling')[i]} is not supported"):
        read(folder, "m")
