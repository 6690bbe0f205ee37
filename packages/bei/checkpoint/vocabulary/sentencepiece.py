"""The protobuf of a sentencepiece model, as far as a tokenizer needs it
(github.com/google/sentencepiece, src/sentencepiece_model.proto).

A message is a list of fields: a key (the field's number and one of four wire types), then a number or a length and as
many bytes. Unknown fields are skipped.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bei.checkpoint.vocabulary.draft import MOST_TOKENS, check_tokens
from bei.errors import SetupError, short

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_SIZES = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

Value = int | bytes


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Model:
    """`charsmap` is the table of the normalizer, empty for none."""

    pieces: list[Piece]
    type: int
    byte_fallback: bool
    unk_id: int
    ids: dict[str, int]
    texts: dict[str, str]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def read(content: bytes, name: str) -> Model:
    """Raises SetupError for what is no sentencepiece model, or a larger one than any that is known."""
    pieces: list[Piece] = []
    settings: dict[int, dict[int, Value]] = {2: {}, 3: {}}  # a repeated message is merged with the earlier one
    try:
        for number, value in _fields(content):
            if number == 1:
                pieces.append(_piece(value))
            elif number in settings:
                settings[number].update(_fields(_bytes(value)))
            if len(pieces) > MOST_TOKENS:
                raise SetupError(f"{name} holds more than {MOST_TOKENS} tokens, the most that are read")
        model = _model(pieces, settings[2], settings[3])
    except (ValueError, IndexError, TypeError, struct.error) as exc:
        raise SetupError(f"{name} is no sentencepiece model ({short(str(exc))}); download it again") from None
    check_tokens(name, [piece.text for piece in pieces])
    if not all(math.isfinite(piece.score) for piece in pieces):
        raise SetupError(f"{name} has a piece whose score is no number; download it again")
    if model.type not in (UNIGRAM, BPE):
        raise SetupError(f"{name} is a sentencepiece model of words or characters; only unigram and BPE are read")
    if not 0 <= model.unk_id < len(pieces):
        raise SetupError(f"{name} has {len(pieces)} pieces, and none of the number {model.unk_id} for what is unknown")
    return model


def _model(pieces: list[Piece], trainer: dict[int, Value], normalizer: dict[int, Value]) -> Model:
    usual = {"bos": (41, 1, 46, b"<s>"), "eos": (42, 2, 47, b"</s>"), "unk": (40, 0, 45, b"<unk>")}
    return Model(
        pieces=pieces,
        type=_number(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(_number(trainer.get(35, 0))),
        unk_id=_number(trainer.get(40, 0)),
        ids={name: _number(trainer.get(field, default)) for name, (field, default, _, _) in usual.items()},
        texts={name: _text(trainer.get(field) or default) for name, (_, _, field, default) in usual.items()},
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(_number(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_number(normalizer.get(4, 1))),
        escape_whitespaces=bool(_number(normalizer.get(5, 1))),
    )


def _piece(value: Value) -> Piece:
    fields = dict(_fields(_bytes(value)))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    return Piece(_text(fields.get(1, b"")), score, _number(fields.get(3, NORMAL)))


def _fields(content: bytes) -> Iterator[tuple[int, Value]]:
    """The numbers of a message's fields, and their values. Raises ValueError or IndexError."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if number == 0 or size > len(content) - at:
            raise ValueError(f"field {number} of {size} bytes")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _number(value: Value) -> int:
    """A signed number of 32 bits, of which negative ones are written as 64."""
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number in place of bytes")
    return value


def _text(value: Value) -> str:
    return _bytes(value).decode()
