"""Jina AI's XLM-RoBERTa: transformers' class for jina-embeddings-v3 saves the same names of tensors; with learned
positions it is XLM-RoBERTa under these names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.errors import SetupError
from tests.support.parity import cosines, reference, sequences
from tests.support.tiny_models import random_model, save, write_json

PARTS = {
    "embeddings.LayerNorm": "emb_ln",
    "encoder.layer.": "encoder.layers.",
    "attention.output.dense": "mixer.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}
QKV = ("query", "key", "value")
CODE = {"AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig"}
FLASH = {"model_type": "xlm-roberta", "auto_map": CODE, "use_flash_attn": True}


def change(folder, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: value for key, value in (config | fields).items() if value is not None})


def rename(folder) -> None:
    """XLM-RoBERTa's tensors under Jina AI's names."""
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if ".self.query." in name]:
        joined = torch.cat([stored.pop(name.replace("query", part)) for part in QKV])
        stored[name.replace("attention.self.query", "mixer.Wqkv")] = joined
    save_file({_renamed(name): tensor for name, tensor in stored.items()}, folder / "model.safetensors")


def _renamed(name: str) -> str:
    for theirs, jinas in PARTS.items():
        name = name.replace(theirs, jinas)
    return name


def test_rotary(make, tmp_path):
    """jina-embeddings-v3 as published."""
    model = random_model("jina_embeddings_v3", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    save(tmp_path, model)
    change(tmp_path, **FLASH, position_embedding_type="rotary", rotary_emb_base=500.0, rope_parameters=None)
    compare(make, tmp_path, model)


def test_learned_positions(make, tmp_path):
    """jina-reranker-v2-base-multilingual's layout."""
    model = random_model("xlm-roberta")
    save(tmp_path, model)
    rename(tmp_path)
    change(tmp_path, **FLASH, position_embedding_type="absolute")
    compare(make, tmp_path, model)


def compare(make, folder, model):
    checkpoint, ids = read(folder, "jina"), sequences()
    engine = make(checkpoint, precision="fp32")
    states, expected = engine.run(Batch.pack(ids, row_kind="tokens")), reference(model, ids)
    assert checkpoint.max_tokens == 64
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    rounded = make(checkpoint, precision="bf16").run(Batch.pack(ids))
    assert cosines(engine.run(Batch.pack(ids)), rounded).min() >= 0.9995


def test_a_reranker_of_jina_ai(make, tmp_path):
    names = {0: "LABEL_0"}
    model = random_model("xlm-roberta", 0, "ForSequenceClassification", id2label=names)
    save(tmp_path, model, pooling=None)
    rename(tmp_path)
    change(tmp_path, **FLASH, position_embedding_type="absolute", id2label={"0": "LABEL_0"})
    checkpoint = read(tmp_path, "jina")
    assert checkpoint.task == "reranker"
    ids = sequences()
    with torch.no_grad():
        expected = np.concatenate([model(torch.tensor([s])).logits.numpy() for s in ids])
    assert np.abs(make(checkpoint, precision="fp32").run(Batch.pack(ids)) - expected).max() <= 2e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "alibi"}, "position_embedding_type 'alibi' is not supported"),
        ({"position_embedding_type": "rotary", "rotary_emb_interleaved": True}, "rotary_emb_interleaved True"),
    ],
)
def test_what_is_not_expressed_is_refused(tmp_path, fields, message):
    save(tmp_path, random_model("jina_embeddings_v3"))
    change(tmp_path, **FLASH, **fields)
    with pytest.raises(SetupError, match=message):
        read(tmp_path, "jina")
