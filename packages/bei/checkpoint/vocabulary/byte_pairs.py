"""vocab.json and merges.txt: byte-level BPE. A byte is a letter, and each line of merges.txt joins two tokens."""

import json
from collections.abc import Callable
from functools import partial

from tokenizers import Regex
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from bei.checkpoint.vocabulary.draft import (
    MOST_MERGES,
    Draft,
    Files,
    Kind,
    Named,
    around,
    as_roberta,
    check_tokens,
    text_of,
)
from bei.checkpoint.vocabulary.stated import Stated, Token
from bei.errors import SetupError, one_line, short

_FILES = ("vocab.json", "merges.txt")
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_vocab(files: Files) -> dict[str, int]:
    """Raises SetupError."""
    try:
        vocab = json.loads(text_of(files, "vocab.json"))
    except (ValueError, RecursionError) as exc:
        raise SetupError(f"vocab.json is not valid JSON ({one_line(exc)}); download it again") from None
    if not isinstance(vocab, dict) or not all(type(id) is int and 0 <= id < 1 << 31 for id in vocab.values()):
        raise SetupError("vocab.json is no dictionary of tokens and their ids; download it again")
    check_tokens("vocab.json", vocab)
    return vocab


def read_merges(files: Files, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Raises SetupError."""
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(text_of(files, "merges.txt").split("\n"), 1):
        line = line.removesuffix("\r")
        if line and not line.startswith("#version"):
            left, *rest = line.split(" ")
            if len(rest) != 1:
                raise SetupError(f"merges.txt, line {number}: {short(line)} is no pair of tokens")
            unknown = [part for part in (left, rest[0], left + rest[0]) if part not in vocab]
            if unknown:
                raise SetupError(f"merges.txt, line {number}: {short(unknown[0])} is not in vocab.json")
            merges.append((left, rest[0]))
        if len(merges) > MOST_MERGES:
            raise SetupError(f"merges.txt has more than {MOST_MERGES} lines, the most that are read")
    return merges


def _split(stated: Stated) -> PreTokenizer:
    return ByteLevel(add_prefix_space=bool(stated.flag("add_prefix_space", False)))


def _draft(
    files: Files,
    stated: Stated,
    named: Named,
    *,
    splitter: Callable[[Stated], PreTokenizer] = _split,
    composed: bool = False,
) -> Draft:
    vocab = read_vocab(files)
    model = BPE(vocab, read_merges(files, vocab), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    library = Library(model)
    if composed:
        library.normalizer = NFC()
    library.pre_tokenizer = splitter(stated)
    library.decoder = Decoder()
    return Draft(library)


def _split_neox(stated: Stated) -> PreTokenizer:
    trim = bool(stated.flag("trim_offsets", True))
    return ByteLevel(add_prefix_space=bool(stated.flag("add_prefix_space", False)), trim_offsets=trim)


def _split_qwen2(stated: Stated) -> PreTokenizer:
    space = bool(stated.flag("add_prefix_space", False))
    return Sequence([Split(Regex(_QWEN2), "isolated"), ByteLevel(add_prefix_space=space, use_regex=False)])


_END = "<|endoftext|>"
_ROBERTA: dict[str, Token | None] = {
    **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
_DEBERTA: dict[str, Token | None] = {
    **{"bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "cls_token": "[CLS]"},
    **{"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
}
ROBERTA = Kind(_FILES, _draft, _ROBERTA, as_roberta())
GPT2 = Kind(_FILES, _draft, {"unk_token": _END, "bos_token": _END, "eos_token": _END})
GPT_NEOX = Kind(
    _FILES,
    partial(_draft, splitter=_split_neox, composed=True),
    {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"},
)
QWEN2 = Kind(
    _FILES,
    partial(_draft, splitter=_split_qwen2, composed=True),
    {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    always_special=True,
)
DEBERTA = Kind(_FILES, _draft, _DEBERTA, around("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"))
"""Pairs are as the model was trained, with one [SEP] between them, and as transformers' DebertaConverter has them. Its
DebertaTokenizer of version 5 puts two there."""
