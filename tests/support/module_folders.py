"""Folders of models whose modules are not an encoder's, written by hand: a Router with a look-up, and a table."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.support.tiny_models import VOCAB, random_model, save, word_pieces, write_json

_MODULES = "sentence_transformers.sparse_encoder.models."
QUERIES, POOLING = "query_0_SparseStaticEmbedding", "document_1_SpladePooling"


def save_router(folder: Path) -> Path:
    """OpenSearch's layout: the encoder of documents lies beside the router, and queries have an idf.json."""
    save(folder, random_model("bert", 0, "ForMaskedLM"), pooling=None)
    rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    write_json(folder / "modules.json", rows)
    types = {QUERIES: "SparseStaticEmbedding", "": "MLMTransformer", POOLING: "SpladePooling"}
    router = {
        "types": {name: _MODULES + kind for name, kind in types.items()},
        "structure": {"query": [QUERIES], "document": ["", POOLING]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(folder / "router_config.json", router)
    write_json(folder / POOLING / "config.json", {"pooling_strategy": "max", "activation_function": "relu"})
    write_json(folder / QUERIES / "config.json", {"frozen": True, "path": "idf.json"})
    write_json(folder / QUERIES / "idf.json", {"cat": 1.5, "dog": 2.5})
    return folder


def save_static(folder: Path) -> Path:
    """Model2Vec's own layout."""
    folder.mkdir()
    word_pieces().save(str(folder / "tokenizer.json"))
    tensors = {"embeddings": np.ones((9, 8), np.float32), "mapping": np.arange(len(VOCAB)) % 9}
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "model2vec", "max_length": 64, "normalize": True})
    return folder
