"""Bounds on the growth of a text in an untrusted tokenizer: the product over its parts, checked before it is used."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.normalizers import Precompiled

from bei.errors import SetupError, short
from bei.tokenizer import charsmap

GROWTH = 128
"""The most characters that one may become. Known tokenizers have 1 to 72: NFKC makes up to 18, lowercase up to 2."""
_ADDED_TOKENS = 100_000
_SPECIAL_IDS = 4096  # around a text
_TOKEN = 1024  # characters; known ones have 128
_PLAIN_SIZE, _PLAIN_PATTERN, _PLAIN_COUNTS = 1 << 26, 1000, 1000
_PLAIN_TEXT, _PLAIN_STRING = 12_000_000, 4096  # bytes: the library takes 350 of one, and a stack as deep as a token
_CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"[A-Za-z0-9+/=]*"')
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")  # which nobody writes
_UNICODE = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "BertNormalizer": 8}
_KEEP_DECOMPOSED = {"StripAccents", "Lowercase", "NFKD"}
_FIXED = {"ByteLevel": 4, "Metaspace": 2}
_SAME = (
    *("Strip", "StripAccents", "Nmt", "BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Punctuation"),
    *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder"),
    *("CTC",),
)


def is_plain(content: bytes) -> bool:
    """Whether reading a tokenizer.json takes little memory, judged by its size, its tokens and its expressions."""
    if len(content) > _PLAIN_SIZE or _ESCAPED_ASCII.search(content):
        return False
    strings = [len(one) for one in _CHARSMAP.sub(b"", content).replace(rb"\"", b"__").split(b'"')[1::2]]
    patterns = re.findall(rb'"Regex"\s*:\s*"((?:[^"\\]|\\.)*)"', content)
    short = sum(strings) <= _PLAIN_TEXT and max(strings, default=0) <= _PLAIN_STRING
    return short and all(map(_is_plain_pattern, patterns))


def _is_plain_pattern(pattern: bytes) -> bool:
    counts = 1
    for pair in re.findall(rb"\{(\d*),?(\d*)\}", pattern):
        counts *= max(1, *(int(count[:9] or 0) for count in pair))
    return len(pattern) <= _PLAIN_PATTERN and counts <= _PLAIN_COUNTS


def check(library: Library) -> tuple[int, int]:
    """The most characters that an ASCII character may become, and that any may. Raises SetupError for growth without a
    reason."""
    _check_template(_state(library.post_processor))
    added = len(library.get_added_tokens_decoder())
    if added > _ADDED_TOKENS:
        raise SetupError(f"tokenizer.json has {added} added tokens; at most {_ADDED_TOKENS} are read")
    longest = max(map(len, library.get_vocab(with_added_tokens=True)), default=0)
    if longest > _TOKEN:
        raise SetupError(f"tokenizer.json has a token of {longest} characters; at most {_TOKEN} are read")
    ascii, any_other, decomposed = 1, 1, False
    for part in (*_parts(_state(library.normalizer)), *_parts(_state(library.pre_tokenizer))):
        of_ascii, of_any = _growth(part, decomposed=decomposed)
        ascii, any_other = ascii * of_ascii, any_other * of_any
        decomposed = part["type"] == "NFKD" or (decomposed and part["type"] in _KEEP_DECOMPOSED)
    worst = max(any_other, decoded(library))
    if worst > GROWTH:
        raise SetupError(f"tokenizer.json may make {worst} characters of one; at most {GROWTH} are read")
    return ascii, any_other


def decoded(library: Library) -> int:
    """The most characters that one character of a token may become in decoded text."""
    growth = 1
    for part in _parts(_state(library.decoder)):
        growth *= _growth(part)[1] if part["type"] == "Replace" else 1
    return growth


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _parts(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The parts of a component, with those of sequences one after the other."""
    if state is None:
        return
    nested = [
        value for key, value in state.items() if key in ("normalizers", "pretokenizers", "processors", "decoders")
    ]
    if not nested:
        yield state
    for part in (part for parts in nested for part in parts):
        yield from _parts(part)


def _growth(part: dict[str, Any], *, decomposed: bool = False) -> tuple[int, int]:
    """The most characters that an ASCII character becomes, and that any becomes. `decomposed`: the text is in the form
    NFKD, in which no character has a longer lowercase."""
    kind = part["type"]
    match kind:
        case "Replace":
            return (_of_replace(part["pattern"], part["content"]),) * 2
        case "Prepend":
            return (1 + len(part["prepend"]),) * 2
        case "Precompiled":
            return _of_charsmap(part["precompiled_charsmap"], decomposed=decomposed)
    if kind in _FIXED:
        return 2, _FIXED[kind]
    if kind not in _UNICODE and kind not in _SAME:
        raise SetupError(f"tokenizer.json has a part of the kind {short(kind)}, which is not known here")
    return 1, 1 if decomposed and kind == "Lowercase" else _UNICODE.get(kind, 1)


def _of_replace(pattern: dict[str, str], content: str) -> int:
    text = pattern.get("String")
    if text:
        return max(1, -(-len(content) // len(text)))
    return max(1, len(content)) if text is None and _takes_a_character(pattern["Regex"]) else 1 + len(content)


def _takes_a_character(pattern: str) -> bool:
    """Whether a regular expression does not match the empty text, as far as Python's engine can tell."""
    try:
        return (
            len(pattern) <= _PLAIN_PATTERN
            and re.fullmatch(pattern, "") is None
            and not re.search(r"[\\(^$|*?]", pattern)
        )
    except re.error:
        return False


def _of_charsmap(encoded: str, *, decomposed: bool) -> tuple[int, int]:
    table = base64.b64decode(encoded)
    longest = charsmap.longest(table)
    if longest > GROWTH:
        return longest, longest
    normalizer = Precompiled(table)
    of_ascii = max(1, *(len(normalizer.normalize_str(chr(code))) for code in range(128)))
    return of_ascii, charsmap.of_decomposed(table) if decomposed else longest


def _check_template(state: dict[str, Any] | None) -> None:
    specials = 0
    for part in _parts(state):
        if part["type"] != "TemplateProcessing":
            continue
        for name in ("single", "pair"):
            texts = [piece["Sequence"]["id"] for piece in part[name] if "Sequence" in piece]
            used = [piece["SpecialToken"]["id"] for piece in part[name] if "SpecialToken" in piece]
            specials += sum(len(part["special_tokens"][id]["ids"]) for id in used)
            if len(texts) > len(set(texts)):
                raise SetupError("tokenizer.json puts a text into its template more than once")
    if specials > _SPECIAL_IDS:
        raise SetupError(
            f"tokenizer.json puts {specials} special tokens around a text; at most {_SPECIAL_IDS} are read"
        )
