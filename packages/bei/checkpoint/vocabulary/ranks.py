"""tiktoken's files: a line has the bytes of a token in base64, and its rank."""

import base64
import binascii
import re

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as Offsets

from bei.checkpoint.vocabulary.draft import Draft, Files, Named, check_tokens, counted
from bei.checkpoint.vocabulary.stated import Stated
from bei.errors import SetupError, short

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,9}\s")
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_LETTERS = {byte: chr(byte) for byte in _PRINTED} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""GPT-2's letter of each byte."""


def is_ranks(files: Files) -> bool:
    ((_, content),) = files.items()
    return _LINE.match(content) is not None


def _read(content: bytes, name: str) -> dict[bytes, int]:
    """Raises SetupError."""
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            found[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise SetupError(f"{name}, line {number}: {short(line)} is no token in base64 and its rank") from None
    if not all(0 <= rank < 1 << 31 for rank in found.values()) or len(set(found.values())) < len(found):
        raise SetupError(f"{name} gives two tokens one rank, or one that no token has; download it again")
    return found


def _letters(token: bytes) -> str:
    return "".join(map(_LETTERS.__getitem__, token))


def _merges(ranks: dict[bytes, int], name: str) -> list[tuple[str, str]]:
    found = (
        (token[:at], token[at:])
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    )
    merges = sorted(counted(found, name), key=lambda of: (ranks[of[0] + of[1]], ranks[of[0]], ranks[of[1]]))
    return [(_letters(left), _letters(right)) for left, right in merges]


def draft(files: Files, stated: Stated, named: Named) -> Draft:
    ((name, content),) = files.items()
    ranks = _read(content, name)
    vocab = {_letters(token): rank for token, rank in ranks.items()}
    check_tokens(name, vocab)
    library = Library(BPE(vocab, _merges(ranks, name), fuse_unk=False, ignore_merges=True))
    splitters = [Split(Regex(_PATTERN), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    library.pre_tokenizer = Sequence(splitters)
    library.decoder = Decoder()
    library.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in _extra(stated, len(ranks))]
    )
    library.post_processor = Offsets(trim_offsets=False)
    return Draft(library)


def _extra(stated: Stated, size: int) -> list[str]:
    """The added tokens after the vocabulary, with placeholders where an id has none, so that each keeps its id."""
    by_id = {id: str(token) for id, token in stated.added_by_id.items()}
    last = max(by_id, default=0)
    if last - size > 100_000:
        raise SetupError(f"tokenizer_config.json: added_tokens_decoder has the id {last}, far beyond {size} tokens")
    found = [by_id.get(id, f"<|reserved_token_{id}|>") for id in range(size, last + 1)]
    held = set(found)
    return [*found, *(token for token in map(str, stated.extra([])) if token not in held)]
