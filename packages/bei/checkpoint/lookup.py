"""A sparse model whose queries need no encoder (arXiv:2411.04403): sentence-transformers' Router, with a
SparseStaticEmbedding for queries and a masked language model for documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bei.checkpoint.modules import Modules, read_json
from bei.checkpoint.tensors import Tensors, scan
from bei.errors import Invalid, SetupError, short

Role = Literal["query", "document"]
_ROLES: dict[str, Role] = {"query": "query", **dict.fromkeys(("document", "passage", "corpus"), "document")}
"""sentence-transformers' names of the prompts of `encode_query` and `encode_document`."""


@dataclass(frozen=True)
class Lookup:
    """`weights`: float32[vocabulary], a query's value of each token that it has. `default` is the role of a text whose
    prompt has the name of neither."""

    weights: np.ndarray
    default: Role | None

    def is_query(self, prompt_name: str | None) -> bool:
        """Raises Invalid if neither the prompt's name nor the model says it."""
        role = _ROLES.get(prompt_name or "", self.default)
        if role is None:
            raise Invalid("`prompt_name` must be query or document: the model has no default", param="prompt_name")
        return role == "query"


def read_lookup(modules: Modules, tokenizer_file: Path, vocab_size: int) -> Lookup | None:
    """None for a model without one. Raises SetupError."""
    if modules.queries is None:
        return None
    folder, default = modules.queries, modules.default_route
    if default not in (None, "query", "document"):
        raise SetupError(f"router_config.json: default_route {short(default)} must be query or document")
    _check_tokenizer(folder, tokenizer_file)
    by_token = bool(read_json(folder / "config.json").get("path"))
    weights = _stated(folder, tokenizer_file, vocab_size) if by_token else _stored(folder)
    if weights.ndim != 1 or len(weights) > vocab_size:
        raise SetupError(f"{folder}: weights of shape {weights.shape} for a vocabulary of {vocab_size}")
    weights = np.pad(weights, (0, vocab_size - len(weights)))  # a matrix has rows that no token needs
    return Lookup(weights, _ROLES[default] if default else None)


def _check_tokenizer(folder: Path, tokenizer_file: Path) -> None:
    """Raises SetupError unless queries and documents have the same tokens."""
    own = folder / "tokenizer.json"
    if own != tokenizer_file and own.exists() and _tokens_of(own) != _tokens_of(tokenizer_file):
        raise SetupError(f"{own} differs from the tokenizer of the documents, which is not supported")


def _tokens_of(file: Path) -> Mapping[str, Any]:
    read = read_json(file)
    return {key: read.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}


def _stored(folder: Path) -> np.ndarray:
    found = scan(folder / "model.safetensors")
    if found.keys() != {"weight"}:
        raise SetupError(f"{folder / 'model.safetensors'} must hold `weight`, nothing else")
    return Tensors({name: (tensor,) for name, tensor in found.items()})["weight"].astype(np.float32)


def _stated(folder: Path, tokenizer_file: Path, vocab_size: int) -> np.ndarray:
    """The weights of `idf.json`, by token. A token that the vocabulary lacks has no effect."""
    file = next((at / "idf.json" for at in (folder, folder.parent) if (at / "idf.json").exists()), folder / "idf.json")
    tokenizer, stated = read_json(tokenizer_file), read_json(file)
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if not stated or not isinstance(vocabulary, dict):
        raise SetupError(f"{file} is missing, or its tokens are not those of {tokenizer_file}")
    ids = {**vocabulary, **{added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())}}
    weights = np.zeros(vocab_size, np.float32)
    for token in stated.keys() & ids.keys():
        weights[ids[token]] = stated[token]
    return weights
