"""Folders with the files of older tokenizers, in their real layouts, and transformers' own tokenizer of a folder."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.support.tokenizer_texts import corpus


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Bytes and text as they are, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@cache
def word_pieces(lowercase: bool) -> tuple[str, ...]:
    """A vocabulary without special tokens."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=700, show_progress=False))
    return tuple(sorted(library.get_vocab(), key=library.get_vocab().__getitem__))


def vocab_txt(*, lowercase: bool = True, specials: str = "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK]") -> str:
    return "\n".join((*specials.split(), *word_pieces(lowercase))) + "\n"


MPNET = "<s> <pad> </s> <unk> [UNK] <mask>"
_FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _added(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, **_FLAGS, "special": True, **flags}


WORD_PIECES: dict[str, dict[str, Any]] = {
    "BERT, nothing stated": {"config.json": {"model_type": "bert"}, "vocab.txt": vocab_txt()},
    "BERT, cased": {
        "config.json": {"model_type": "bert"},
        "tokenizer_config.json": {"do_lower_case": False, "max_len": 512, "init_inputs": []},
        "special_tokens_map.json": {
            f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
        },
        "vocab.txt": vocab_txt(lowercase=False).replace("\n", "\r\n"),
    },
    "BERT, accents kept": {
        "config.json": {"model_type": "bert"},
        "tokenizer_config.json": {
            **{"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False},
            **{"tokenize_chinese_chars": False, "never_split": ["cat"], "do_basic_tokenize": True},
        },
        "vocab.txt": vocab_txt(),
    },
    "BERT, tokens added": {
        "config.json": {"model_type": "bert"},
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizerFast",
            "added_tokens_decoder": {
                "0": _added("[PAD]"),
                "2": _added("[UNK]"),
                "3": _added("[CLS]"),
                "4": _added("[SEP]"),
                "5": _added("[MASK]", lstrip=True),
                "9999": {**_added("<own>"), "special": False, "single_word": True},
                "9998": {**_added("NEWTOKEN"), "special": False, "normalized": True},
            },
            "additional_special_tokens": ["<image>", "[unused0]"],
            "strip_accents": None,
        },
        "vocab.txt": vocab_txt(),
    },
    "BERT, added_tokens.json": {
        "config.json": {"model_type": "electra"},
        "tokenizer_config.json": {"do_lower_case": False, "tokenizer_class": "ElectraTokenizer"},
        "special_tokens_map.json": {
            "unk_token": "[UNK]",
            "mask_token": {"content": "[MASK]", **_FLAGS, "lstrip": True, "normalized": True},
            "additional_special_tokens": ["<own>"],
        },
        "added_tokens.json": {"NEWTOKEN": 801, "<own>": 802, "cat sat": 800},
        "vocab.txt": vocab_txt(lowercase=False),
    },
    "DistilBERT": {
        "config.json": {"model_type": "distilbert"},
        "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 512},
        "vocab.txt": vocab_txt().removesuffix("\n"),
    },
    "MobileBERT": {
        "config.json": {"model_type": "mobilebert"},
        "tokenizer_config.json": {"tokenizer_class": "MobileBertTokenizer", "do_lower_case": True},
        "vocab.txt": vocab_txt(),
    },
    "ERNIE": {"config.json": {"model_type": "ernie"}, "vocab.txt": vocab_txt()},
    "MPNet": {"config.json": {"model_type": "mpnet"}, "vocab.txt": vocab_txt(specials=MPNET)},
    "MPNet, stated": {
        "config.json": {"model_type": "mpnet"},
        "tokenizer_config.json": {
            "tokenizer_class": "MPNetTokenizer",
            "bos_token": "<s>",
            "mask_token": {"__type": "AddedToken", "content": "<mask>", **_FLAGS, "lstrip": True, "normalized": True},
            "do_lower_case": False,
        },
        "vocab.txt": vocab_txt(lowercase=False, specials=MPNET),
    },
}

CASES = {**WORD_PIECES}


def own(folder: Path) -> Tokenizer:
    """The library's tokenizer inside transformers' own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    return tokenizer.backend_tokenizer
