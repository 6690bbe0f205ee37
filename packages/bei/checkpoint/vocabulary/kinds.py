"""Which class of transformers' tokenizers a checkpoint has, and from which of its files it is made; or why it cannot be
made here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bei.checkpoint.vocabulary import wordpiece
from bei.checkpoint.vocabulary.draft import Kind
from bei.errors import SetupError, short

KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ErnieTokenizer"),
            *("ConvBertTokenizer", "SqueezeBertTokenizer", "LayoutLMTokenizer", "RetriBertTokenizer"),
        ),
        wordpiece.BERT,
    ),
    "MPNetTokenizer": wordpiece.MPNET,
}

_OF_MODEL_TYPES: dict[str, str] = {
    **dict.fromkeys(
        ("bert", "distilbert", "electra", "mobilebert", "ernie", "nomic_bert", "new", "convbert", "squeezebert"),
        "BertTokenizer",
    ),
    "mpnet": "MPNetTokenizer",
}
"""The class of a checkpoint whose files name none."""

_JAPANESE = "divides words by {0}, a program that is not run here"
_NEEDS: dict[str, str] = {
    "BertJapaneseTokenizer": _JAPANESE.format("MeCab, Juman++ or Sudachi"),
    "PhobertTokenizer": "reads words that VnCoreNLP has divided, a program that is not run here",
    "BertweetTokenizer": "rewrites texts by code in Python (emoji, users, addresses), which is not run here",
    "BartphoTokenizer": "is code in Python, which is not run here",
    "RoFormerTokenizer": "divides words by jieba, a program that is not run here",
    "CpmTokenizer": "divides words by jieba, a program that is not run here",
    "XLMTokenizer": "divides words by sacremoses, a program that is not run here",
    "FlaubertTokenizer": "divides words by sacremoses, a program that is not run here",
    "GPTNeoXJapaneseTokenizer": "is code in Python, which is not run here",
    "CanineTokenizer": "reads characters by code in Python, which is not run here",
    "ByT5Tokenizer": "reads bytes by code in Python, which is not run here",
}
_PROGRAMS = {"mecab": "MeCab", "jumanpp": "Juman++", "sudachi": "Sudachi"}
_ACCEPTED = "tokenizer.json and vocab.txt (WordPiece)"


def choose(folder: Path, model_type: str, config: Mapping[str, Any]) -> tuple[str, Kind]:
    """The name of a class, and the class. `config` has the keys of config.json and, above them, of
    tokenizer_config.json. Raises SetupError: one line with the remedy."""
    stated = config.get("tokenizer_class")
    named = str(stated).removesuffix("Fast") if stated else None
    _check_programs(named, config)
    for name in dict.fromkeys((named, _OF_MODEL_TYPES.get(model_type))):
        kind = KINDS.get(name or "")
        if name and kind and all((folder / file).is_file() for file in kind.files):
            return name, kind
    raise SetupError(
        f"{folder / 'tokenizer.json'} is missing{_lacks(named)}; accepted are {_ACCEPTED}. Or write it with "
        "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _check_programs(named: str | None, config: Mapping[str, Any]) -> None:
    program = config.get("word_tokenizer_type")
    if isinstance(program, str) and program in _PROGRAMS:
        raise _needs(f"word_tokenizer_type {short(program)}", _JAPANESE.format(_PROGRAMS[program]))
    if named in _NEEDS:
        raise _needs(named, _NEEDS[named])
    own = config.get("auto_map") or {}
    if named not in KINDS and isinstance(own, Mapping) and own.get("AutoTokenizer"):
        raise _needs(short(named), "is code of the checkpoint's own, which is never run")


def _needs(name: str, what: str) -> SetupError:
    return SetupError(
        f"tokenizer_config.json: {name} {what}; serve a checkpoint that has a tokenizer.json, which needs no program"
    )


def _lacks(named: str | None) -> str:
    if named is None:
        return ", and no file names a tokenizer_class"
    if named not in KINDS:
        return f", and {short(named)} is not built from other files here"
    return f", and so is {' or '.join(KINDS[named].files)} of {short(named)}"
