"""Positions between the characters of a text."""

import unicodedata
from typing import Literal
from unicodedata import normalize

import numpy as np

_JOINING = ("M", "Cf", "Cs", "Co", "Cn", "Sk")  # categories with characters that are one sign with their neighbors
_FLAGS = range(0x1F1E6, 0x1F200)  # two letters a flag
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
_APOSTROPHES = "'\u2019"


def is_plain(before: str, after: str) -> bool:
    """Whether two adjacent characters are separate: no Unicode normal form joins or reorders them, and neither is part
    of a larger grapheme."""
    if before.isascii() and after.isascii():
        return before + after != "\r\n"
    if any(unicodedata.category(one).startswith(_JOINING) or ord(one) in _FLAGS for one in (before, after)):
        return False
    alone = ((normalize(form, before) + normalize(form, after), normalize(form, before + after)) for form in _FORMS)
    return all(apart == together for apart, together in alone)


def is_anchor(before: str, after: str) -> bool:
    """Whether a word ends between two characters in any context: a letter or digit, then whitespace or punctuation."""
    ends = unicodedata.category(after)[0] in "ZP" or after.isspace()
    return is_plain(before, after) and before.isalnum() and ends and after not in _APOSTROPHES


def as_sent(sent: str, lowered: str, places: np.ndarray) -> np.ndarray:
    """int32[2, n]: places in a lowercased text → places in the original. One letter grows in lowercase, U+0130."""
    if len(sent) == len(lowered):
        return places
    sources = np.repeat(np.arange(len(sent), dtype=np.int32), [len(character.lower()) for character in sent])
    sources = np.append(sources, len(sent)).astype(np.int32)
    starts, ends = places
    return np.stack([sources[starts], np.where(ends > starts, sources[np.maximum(ends, 1) - 1] + 1, sources[ends])])
