"""Static models: sentence-transformers' StaticEmbedding, and Model2Vec's own layout. Neither has a config.json that
says how large its table is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bei.checkpoint.modules import read_json
from bei.checkpoint.tensors import Tensor
from bei.errors import SetupError

_MODEL2VEC_TOKENS = 512  # the default `max_length` of Model2Vec's StaticModel
_NO_LIMIT = 1 << 30
_TABLES = ("embedding.weight", "embeddings")


def table_of(folder: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One row per token, `embedding.weight`. Model2Vec stores fewer rows: `mapping` has each token's row, and `weights`
    a factor of each token. Raises SetupError for tensors of another layout."""
    name = next((name for name in _TABLES if name in stored), None)
    left = sorted(stored.keys() - {name, "mapping", "weights"})
    if name is None or left or len(stored[name].shape) != 2:
        raise SetupError(
            f"{folder}: a static model has a matrix named {' or '.join(_TABLES)}, and no {left or 'other'}"
        )
    table, rows, factors = stored[name], stored.get("mapping"), stored.get("weights")
    count = rows.shape if rows is not None else table.shape[:1]
    if (factors is not None and factors.shape != count) or len(count) != 1:
        raise SetupError(f"{folder}: `mapping` and `weights` must have one number for each token")
    return {_TABLES[0]: replace(table, shape=(*count, table.shape[1]), rows_of=rows, factors=factors)}


def config_of(table: Tensor, tokenizer_file: Path, *, model2vec: bool) -> Mapping[str, Any]:
    """The values that a config.json would have. Model2Vec cuts texts at the `max_length` of its config.json,
    StaticEmbedding at that of tokenizer.json's truncation."""
    if model2vec:
        limit = read_json(tokenizer_file.parent / "config.json").get("max_length", _MODEL2VEC_TOKENS)
    else:
        limit = (read_json(tokenizer_file).get("truncation") or {}).get("max_length")
    vocab_size, hidden_size = table.shape
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size}
    return {"model_type": "model2vec", **sizes, "max_tokens": _NO_LIMIT if limit is None else limit}
