"""Which class of transformers' tokenizers a checkpoint has, and from which of its files it is made; or why it cannot be
made here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bei.checkpoint.vocabulary import amino_acids, byte_pairs, piece_pairs, unigrams, wordpiece
from bei.checkpoint.vocabulary.draft import Kind
from bei.errors import SetupError, short

_ANY = "TokenizersBackend"
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ErnieTokenizer"),
            *("ConvBertTokenizer", "SqueezeBertTokenizer", "LayoutLMTokenizer", "RetriBertTokenizer"),
        ),
        wordpiece.BERT,
    ),
    "MPNetTokenizer": wordpiece.MPNET,
    "EsmTokenizer": amino_acids.ESM,
    **dict.fromkeys(
        ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer"),
        byte_pairs.ROBERTA,
    ),
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer"), byte_pairs.GPT2),
    "GPTNeoXTokenizer": byte_pairs.GPT_NEOX,
    "Qwen2Tokenizer": byte_pairs.QWEN2,
    "DebertaTokenizer": byte_pairs.DEBERTA,
    "XLMRobertaTokenizer": unigrams.XLM_ROBERTA,
    "CamembertTokenizer": unigrams.CAMEMBERT,
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer"), unigrams.T5),
    "UMT5Tokenizer": unigrams.UMT5,
    "AlbertTokenizer": unigrams.ALBERT,
    "XLNetTokenizer": unigrams.XLNET,
    "BigBirdTokenizer": unigrams.BIG_BIRD,
    "DebertaV2Tokenizer": unigrams.DEBERTA_V2,
    "LlamaTokenizer": piece_pairs.LLAMA,
    "GemmaTokenizer": piece_pairs.GEMMA,
    **dict.fromkeys((_ANY, "PreTrainedTokenizer"), piece_pairs.ANY),
}

_OF_MODEL_TYPES: dict[str, str] = {
    **dict.fromkeys(
        ("bert", "distilbert", "electra", "mobilebert", "ernie", "nomic_bert", "convbert", "squeezebert"),
        "BertTokenizer",
    ),
    "mpnet": "MPNetTokenizer",
    "esm": "EsmTokenizer",
    **dict.fromkeys(("roberta", "bart", "longformer"), "RobertaTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "phi"), "GPT2Tokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "deberta": "DebertaTokenizer",
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "jina_embeddings_v3"), "XLMRobertaTokenizer"),
    "camembert": "CamembertTokenizer",
    **dict.fromkeys(("t5", "mt5"), "T5Tokenizer"),
    "umt5": "UMT5Tokenizer",
    "albert": "AlbertTokenizer",
    "xlnet": "XLNetTokenizer",
    "big_bird": "BigBirdTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "t5gemma"), "GemmaTokenizer"),
}
"""The class of a checkpoint whose files name none. Others get that of any sentencepiece model."""

_FORCED = {"qwen2", "umt5"}
"""Model types whose class is that one, whatever their files name: many name a wrong one."""

_BY_SETTINGS = {"mistral", "mixtral", "ministral", "ministral3", "phi3", "stablelm", "granite", "olmo2", "olmo3"}
"""Model types whose tokenizer.model is read by its own settings, whatever class their files name."""

_SHARED = "tokenizer.model"
_FAST_BPE = "bpe.codes"
_RANKS = ("tiktoken.model", "*.tiktoken")

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
_ACCEPTED = (
    "tokenizer.json; vocab.txt (WordPiece); vocab.json and merges.txt (byte-level BPE); sentencepiece.bpe.model, "
    "spiece.model, spm.model and tokenizer.model (sentencepiece); *.tiktoken"
)


def choose(folder: Path, model_type: str, config: Mapping[str, Any]) -> tuple[str, Kind, tuple[str, ...]]:
    """The name of a class, the class, and its files. `config` has the keys of config.json and, above them, of
    tokenizer_config.json. Raises SetupError: one line with the remedy."""
    stated = config.get("tokenizer_class")
    named = str(stated).removesuffix("Fast") if stated else None
    _check_programs(named, config)
    if (folder / _FAST_BPE).is_file():
        raise _needs(_FAST_BPE, "is a vocabulary of fastBPE, as PhoBERT and BERTweet have, which is not read here")
    usual = _OF_MODEL_TYPES.get(model_type, _ANY)
    names = [_ANY] if model_type in _BY_SETTINGS else [usual] if model_type in _FORCED else []
    for name in (*names, named or usual):
        files = _present(folder, KINDS[name]) if name in KINDS else None
        if files is not None:
            return name, KINDS[name], files
    raise SetupError(
        f"{folder / 'tokenizer.json'} is missing{_lacks(named)}; accepted are {_ACCEPTED}. Or write it with "
        "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _present(folder: Path, kind: Kind) -> tuple[str, ...] | None:
    """The files of a class in the folder. A sentencepiece model may have the name that most have."""
    is_sentencepiece = kind.files[0].endswith(".model")
    for files in (*([(_SHARED,)] if is_sentencepiece else []), kind.files):
        if all((folder / file).is_file() for file in files):
            return files
    ranks = [file.name for pattern in _RANKS for file in folder.glob(pattern)] if kind is piece_pairs.ANY else []
    return (ranks[0],) if len(ranks) == 1 else None


def _check_programs(named: str | None, config: Mapping[str, Any]) -> None:
    program = config.get("word_tokenizer_type")
    if isinstance(program, str) and program in _PROGRAMS:
        raise _needs(
            f"tokenizer_config.json: word_tokenizer_type {short(program)}", _JAPANESE.format(_PROGRAMS[program])
        )
    if named in _NEEDS:
        raise _needs(f"tokenizer_config.json: {named}", _NEEDS[named])
    own = config.get("auto_map") or {}
    if named not in KINDS and isinstance(own, Mapping) and own.get("AutoTokenizer"):
        raise _needs(f"tokenizer_config.json: {short(named)}", "is code of the checkpoint's own, which is never run")


def _needs(name: str, what: str) -> SetupError:
    return SetupError(f"{name} {what}; serve a checkpoint that has a tokenizer.json, which needs no program")


def _lacks(named: str | None) -> str:
    if named is None:
        return ", and no file names a tokenizer_class"
    if named not in KINDS:
        return f", and {short(named)} is not built from other files here"
    return f", and so is {' or '.join(KINDS[named].files)} of {short(named)}"
