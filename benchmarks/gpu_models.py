"""The models for GPU measurements: MiniLM's weights, and random weights in the shapes of larger models.

All use MiniLM's tokenizer and read 512 tokens. Random weights are made at the first use, in .benchmarks/.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from bei.architectures.shapes import products_per_token
from bei.architectures.spec import EncoderSpec
from benchmarks.cpu import SHAPES, minilm, seen

QWEN3_8B = {
    **{"vocab_size": 151_665, "hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12_288},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000}},
}
MISTRAL_7B = {"vocab_size": 32_000, "num_key_value_heads": 8, "sliding_window": None}
TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minilm": ("", "", {}),
    "bge-large": ("BertConfig", "cls", SHAPES["bge-large"][2]),
    "qwen3-0.6b": SHAPES["qwen3-0.6b"],
    "qwen3-8b": ("Qwen3Config", "lasttoken", QWEN3_8B),
    "mistral-7b": ("MistralConfig", "lasttoken", MISTRAL_7B),
    "tiny-bert": ("BertConfig", "mean", TINY),
    "tiny-qwen3": (
        "Qwen3Config",
        "lasttoken",
        {**TINY, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 30_522},
    ),
}
"""transformers' class, pooling, and the values that differ from the class's defaults; "tiny" models are to try the
program."""
TOKENS = {"minilm": 1 << 19, "bge-large": 1 << 18, "qwen3-0.6b": 1 << 18, "qwen3-8b": 1 << 16, "mistral-7b": 1 << 16}
"""Tokens of a set of texts; 1,024 for a tiny model."""
LENGTHS = {"16": (16,), "128": (128,), "512": (512,), "mix": (16, 16, 16, 16, 16, 16, 128, 128, 128, 512)}


def folder(model: str, work: Path) -> Path:
    """The folder of a model's files, made if missing: weights in bfloat16, made on the GPU where there is one."""
    name, pooling, sizes = MODELS[model]
    made = work / f"gpu-{model}"
    if made.exists() or not name:
        return minilm(made)
    minilm(made)
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**sizes, "dtype": "bfloat16"})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(made)
    pooled = {"pooling_mode": pooling, "embedding_dimension": config.hidden_size}
    (made / "1_Pooling" / "config.json").write_text(json.dumps(pooled))
    return made


def texts(tokenizer: Tokenizer, lengths: tuple[int, ...], tokens: int) -> list[str]:
    """Texts of words that are one token each, with `tokens` tokens or a few more in all. Their lengths (special tokens
    counted) alternate between those given, and the texts are shuffled."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    rng = np.random.default_rng(0)
    turns = -(-tokens // sum(lengths))
    chosen = rng.permutation(list(lengths) * turns)
    return [" ".join(words[i] for i in rng.integers(len(words), size=length - 2)) for length in chosen]


def operations(spec: EncoderSpec, lengths: list[int]) -> float:
    """The operations of the layers' products, attention's included; a multiplication and an addition are two."""
    attention = sum(seen(spec, layer, length) * lengths.count(length) for layer in spec.layers for length in {*lengths})
    return 2.0 * products_per_token(spec) * sum(lengths) + 4.0 * spec.query_size * attention
