"""Folders with the files of older tokenizers, in their real layouts, and transformers' own tokenizer of a folder."""

import base64
import importlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bei.checkpoint.vocabulary import sentencepiece
from tests.support.tokenizer_texts import corpus

_CONVERSION = importlib.import_module("transformers.convert_slow_tokenizer")


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(as_bytes(content))
    return folder


def as_bytes(content: Any) -> bytes:
    """Bytes and text as they are, anything else as JSON."""
    match content:
        case bytes():
            return content
        case str():
            return content.encode()
        case _:
            return json.dumps(content).encode()


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


# -- vocab.json and merges.txt ---------------------------------------------------------------------------------------


@cache
def _byte_pairs(specials: tuple[str, ...]) -> tuple[str, str]:
    """vocab.json and merges.txt, the special tokens first."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(corpus(), trainer)
    model = json.loads(library.to_str())["model"]
    return json.dumps(model["vocab"]), "\n".join(("#version: 0.2", *map(" ".join, model["merges"]), ""))


def _bytes_of(model_type: str, specials: str, **more: Any) -> dict[str, Any]:
    vocab, merges = _byte_pairs(tuple(specials.split()))
    return {"config.json": {"model_type": model_type}, "vocab.json": vocab, "merges.txt": merges, **more}


_ROBERTA = "<s> <pad> </s> <unk> <mask>"
_BART = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
BYTE_PAIRS: dict[str, dict[str, Any]] = {
    "RoBERTa, nothing stated": _bytes_of("roberta", _ROBERTA),
    "RoBERTa, prefix": _bytes_of(
        "roberta",
        _ROBERTA,
        **{
            "tokenizer_config.json": {"add_prefix_space": True, "trim_offsets": False, "model_max_length": 512},
            "special_tokens_map.json": {
                **{name: {"content": token, **_FLAGS, "normalized": True} for name, token in _BART.items()},
                "pad_token": "<pad>",
                "mask_token": {"content": "<mask>", **_FLAGS, "lstrip": True},
            },
        },
    ),
    "BART": _bytes_of("bart", _ROBERTA, **{"tokenizer_config.json": {"tokenizer_class": "BartTokenizer"}}),
    "GPT-2": _bytes_of("gpt2", "<|endoftext|>", **{"tokenizer_config.json": {"model_max_length": 1024}}),
    "GPT-2, with ends": _bytes_of(
        "gpt2",
        "<|endoftext|> <s>",
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_eos_token": True},
                **{"bos_token": "<s>", "pad_token": None, "add_prefix_space": True},
            }
        },
    ),
    "NeoX": _bytes_of(
        "gpt_neox", "<|endoftext|> <|padding|>", **{"tokenizer_config.json": {"tokenizer_class": "GPTNeoXTokenizer"}}
    ),
    "Qwen2": _bytes_of(
        "qwen2",
        "",
        **{
            "tokenizer_config.json": {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": {
                    "900": _added("<|endoftext|>"),
                    "901": _added("<|im_start|>"),
                    "902": {**_added("<own>"), "special": False},
                },
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                **{"bos_token": None, "eos_token": "<|endoftext|>", "add_bos_token": False, "unk_token": None},
            }
        },
    ),
    "Qwen3, a wrong class": _bytes_of(
        "qwen2", "<|endoftext|>", **{"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}}
    ),
    "DeBERTa": _bytes_of(
        "deberta",
        "[CLS] [PAD] [SEP] [UNK] [MASK]",
        **{
            "tokenizer_config.json": {
                "do_lower_case": False,
                "vocab_type": "gpt2",
                "tokenizer_class": "DebertaTokenizer",
            }
        },
    ),
}


# -- sentencepiece ---------------------------------------------------------------------------------------------------

_TRAINED = Path(__file__).parents[1] / "data" / "sentencepiece"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def message(*fields: tuple[int, Any]) -> bytes:
    """The protobuf of a message: numbers, texts, bytes and 32-bit floats."""
    found = b""
    for number, value in fields:
        match value:
            case float():
                found += _number(number << 3 | 5) + struct.pack("<f", value)
            case int():
                found += _number(number << 3) + _number(value)
            case _:
                content = value.encode() if isinstance(value, str) else value
                found += _number(number << 3 | 2) + _number(len(content)) + content
    return found


def fields_of(content: bytes) -> list[tuple[int, Any]]:
    return list(sentencepiece._fields(content))


def _pieces(name: str) -> list[tuple[str, float]]:
    """The normal pieces of a trained model."""
    model = sentencepiece.read((_TRAINED / name).read_bytes(), name)
    return [(piece.text, piece.score) for piece in model.pieces if piece.type == NORMAL]


def _charsmap() -> bytes:
    return sentencepiece.read((_TRAINED / "unigram.model").read_bytes(), "").charsmap


def model(
    specials: list[tuple[str, int]],
    name: str = "unigram.model",
    *,
    trainer: tuple[tuple[int, Any], ...] = (),
    normalizer: tuple[tuple[int, Any], ...] | None = None,
) -> bytes:
    """A sentencepiece model with the special pieces of another one, and other settings."""
    pieces = [(1, message((1, text), (2, 0.0), (3, kind))) for text, kind in specials]
    pieces += [(1, message((1, text), (2, score))) for text, score in _pieces(name)]
    kind = 1 if name == "unigram.model" else 2
    rules = ((1, "user_defined"), (2, _charsmap())) if normalizer is None else normalizer
    return message(*pieces, (2, message((3, kind), *trainer)), (3, message(*rules)))


def _controls(text: str, unknown: str = "<unk>") -> list[tuple[str, int]]:
    return [(token, UNKNOWN if token == unknown else CONTROL) for token in text.split()]


def _bytes_too(specials: str) -> list[tuple[str, int]]:
    return [*_controls(specials), *((f"<0x{byte:02X}>", BYTE) for byte in range(256))]


def _unigram(model_type: str, file: str, content: bytes, **more: Any) -> dict[str, Any]:
    return {"config.json": {"model_type": model_type}, file: content, **more}


_XLMR = model(_controls("<unk> <s> </s>"))
_T5 = model(_controls("<pad> </s> <unk>"), trainer=((40, 2), (41, -1), (42, 1), (43, 0)))
_ALBERT = model(_controls("<pad> <unk> [CLS] [SEP] [MASK]"), trainer=((40, 1), (41, 2), (42, 3), (43, 0)))
_XLNET = model(_controls("<unk> <s> </s> <cls> <sep> <pad> <mask> <eod> <eop>"))
_DEBERTA = model(
    _controls("[PAD] [CLS] [SEP] [UNK]", "[UNK]"), trainer=((40, 3), (41, 1), (42, 2), (43, 0), (45, "[UNK]"))
)
_LLAMA = model(_bytes_too("<unk> <s> </s>"), "bpe.model", trainer=((35, 1),), normalizer=((1, "identity"), (4, 0)))
_GEMMA = model(
    [*_controls("<pad> <eos> <bos> <unk>"), ("<mask>", USER_DEFINED), *_bytes_too("")],
    "bpe.model",
    trainer=((35, 1), (40, 3), (41, 2), (42, 1), (43, 0), (46, "<bos>"), (47, "<eos>")),
    normalizer=((1, "identity"), (3, 0), (4, 0)),
)
UNIGRAMS: dict[str, dict[str, Any]] = {
    "XLM-R, nothing stated": _unigram("xlm-roberta", "sentencepiece.bpe.model", _XLMR),
    "XLM-R, stated": _unigram(
        "xlm-roberta",
        "sentencepiece.bpe.model",
        model(_controls("<unk> <s> </s>"), normalizer=((1, "identity"),)),
        **{
            "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizerFast", "model_max_length": 512},
            "special_tokens_map.json": {
                "mask_token": {"content": "<mask>", **_FLAGS, "lstrip": True, "normalized": True},
                "bos_token": "<s>",
            },
            "added_tokens.json": {"<own>": 425},
        },
    ),
    "CamemBERT": _unigram(
        "camembert",
        "sentencepiece.bpe.model",
        _XLMR,
        **{"tokenizer_config.json": {"tokenizer_class": "CamembertTokenizer", "add_prefix_space": False}},
    ),
    "T5": _unigram("t5", "spiece.model", _T5, **{"tokenizer_config.json": {"model_max_length": 512}}),
    "T5, stated": _unigram(
        "t5",
        "spiece.model",
        _T5,
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "T5Tokenizer", "extra_ids": 100},
                **{"additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]},
            }
        },
    ),
    "mT5": _unigram(
        "mt5",
        "spiece.model",
        _T5,
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None},
                **{"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
            }
        },
    ),
    "ALBERT": _unigram("albert", "spiece.model", _ALBERT),
    "ALBERT, cased": _unigram(
        "albert",
        "spiece.model",
        _ALBERT,
        **{
            "tokenizer_config.json": {
                **{"do_lower_case": False, "keep_accents": True, "tokenizer_class": "AlbertTokenizer"},
                "mask_token": {"__type": "AddedToken", "content": "[MASK]", **_FLAGS, "lstrip": True},
            }
        },
    ),
    "XLNet": _unigram("xlnet", "spiece.model", _XLNET),
    "XLNet, lowercase": _unigram("xlnet", "spiece.model", _XLNET, **{"tokenizer_config.json": {"do_lower_case": True}}),
    "BigBird": _unigram(
        "big_bird",
        "spiece.model",
        model(_controls("<pad> </s> <s> <unk>"), trainer=((40, 3), (41, 2), (42, 1), (43, 0))),
        **{"tokenizer_config.json": {"tokenizer_class": "BigBirdTokenizer"}, "added_tokens.json": {"[MASK]": 424}},
    ),
    "DeBERTa v2": _unigram(
        "deberta-v2",
        "spm.model",
        _DEBERTA,
        **{
            "tokenizer_config.json": {"do_lower_case": False, "vocab_type": "spm"},
            "added_tokens.json": {"[MASK]": 424},
        },
    ),
    "DeBERTa v2, lowercase": _unigram(
        "deberta-v2",
        "spm.model",
        _DEBERTA,
        **{"tokenizer_config.json": {"do_lower_case": True, "split_by_punct": True, "add_prefix_space": False}},
    ),
}
UMT5 = _unigram(
    "umt5",
    "spiece.model",
    model(_controls("<pad> </s> <s> <unk>"), trainer=((40, 3), (41, 2), (42, 1), (43, 0))),
    **{"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 30}},
)
PIECE_PAIRS: dict[str, dict[str, Any]] = {
    "Llama 2": _unigram(
        "llama",
        "tokenizer.model",
        _LLAMA,
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False},
                **{
                    name: {"__type": "AddedToken", "content": token, **_FLAGS, "normalized": True}
                    for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
                },
            }
        },
    ),
    "Llama, legacy": _unigram(
        "llama",
        "tokenizer.model",
        _LLAMA,
        **{"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_eos_token": True}},
    ),
    "Llama, no prefix": _unigram(
        "llama",
        "tokenizer.model",
        _LLAMA,
        **{"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False}},
    ),
    "Mistral": _unigram(
        "mistral",
        "tokenizer.model",
        _LLAMA,
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True},
                "added_tokens_decoder": {"0": _added("<unk>"), "1": _added("<s>"), "2": _added("</s>")},
                **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
            }
        },
    ),
    "by its settings": _unigram(
        "mistral",
        "tokenizer.model",
        (_TRAINED / "bpe.model").read_bytes(),
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True},
                "added_tokens_decoder": {"999": {**_added("NEWTOKEN"), "normalized": True, "special": False}},
            }
        },
    ),
    "by its settings, unigrams": _unigram(
        "phi3",
        "tokenizer.model",
        (_TRAINED / "unigram.model").read_bytes(),
        **{"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}},
    ),
    "by its settings, no prefix": _unigram(
        "mistral",
        "tokenizer.model",
        model(_controls("<unk> <s> </s>"), normalizer=((2, _charsmap()), (3, 0), (4, 1))),
    ),
    "Gemma": _unigram(
        "gemma",
        "tokenizer.model",
        _GEMMA,
        **{
            "tokenizer_config.json": {
                **{"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False},
                "added_tokens_decoder": {str(i): _added(token) for i, token in enumerate(("<pad>", "<eos>", "<bos>"))},
                "additional_special_tokens": ["<start_of_turn>"],
                **{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
            }
        },
    ),
}


# -- tiktoken --------------------------------------------------------------------------------------------------------


@cache
def rank_lines() -> bytes:
    """A line for each token of a byte-level vocabulary."""
    vocab = json.loads(_byte_pairs(())[0])
    of_letter = {letter: byte for byte, letter in _CONVERSION.bytes_to_unicode().items()}
    tokens = [bytes(of_letter[letter] for letter in token) for token in sorted(vocab, key=vocab.__getitem__)]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


RANKS: dict[str, dict[str, Any]] = {
    "tiktoken": {"config.json": {"model_type": "llama"}, "tiktoken.model": rank_lines()},
    "tiktoken, with added tokens": {
        "config.json": {"model_type": "llama"},
        "tokenizer.model": rank_lines(),
        "tokenizer_config.json": {
            **{"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "bos_token": "<|im_start|>"},
            "added_tokens_decoder": {"901": _added("<|im_start|>"), "905": _added("<|endoftext|>")},
            "extra_special_tokens": ["<own>"],
        },
    },
}

_AMINO_ACIDS = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
ESM: dict[str, Any] = {
    "config.json": {"model_type": "esm"},
    "tokenizer_config.json": {"tokenizer_class": "EsmTokenizer"},
    "special_tokens_map.json": {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")},
    "vocab.txt": "\n".join(_AMINO_ACIDS.split()),
}

CASES = {**WORD_PIECES, **BYTE_PAIRS, **UNIGRAMS, **PIECE_PAIRS, **RANKS}


def own(folder: Path) -> Tokenizer:
    """The library's tokenizer inside transformers' own. transformers asks for sentencepiece and tiktoken, but needs of
    them one reader of a few lines."""
    with _without_packages():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    return tokenizer.backend_tokenizer


@contextmanager
def _without_packages() -> Iterator[None]:
    with (
        mock.patch.object(_CONVERSION, "requires_backends"),
        mock.patch.object(_CONVERSION.TikTokenConverter, "load_tiktoken_bpe", staticmethod(_ranks_of)),
    ):
        yield


def own_umt5(folder: Path, extra_ids: int) -> Tokenizer:
    """transformers' T5Converter, which wrote the tokenizer.json of the published UMT5 models: their class of version 5
    reads no spiece.model."""
    slow = SimpleNamespace(vocab_file=str(folder / "spiece.model"), _extra_ids=extra_ids, add_prefix_space=True)
    slow.convert_tokens_to_ids = {"</s>": 1}.__getitem__
    with _without_packages():
        library = _CONVERSION.T5Converter(slow).converted()
    specials = ["</s>", "<unk>", "<pad>", *(f"<extra_id_{i}>" for i in range(extra_ids))]
    library.add_tokens([AddedToken(token, special=True) for token in specials])
    return library


def _ranks_of(file: str) -> dict[bytes, int]:
    lines = (line.split() for line in Path(file).read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}
