"""Values as JSON and msgpack: short ones at once, large ones in parts, so that other threads run between."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import ormsgpack

from bei.tasks.sparse import Terms
from bei.tokenizer import TextTokens
from bei.work import check

_SHORT = 1 << 16  # bytes, about, that are written at once: 0.5 ms of numbers
_PART = 1 << 18  # bytes of a part, at least


def is_short(value: Any) -> bool:
    return _weight(value) <= _SHORT


def _weight(value: Any) -> int:
    """The approximate number of bytes that a value takes; a long list or object is large without being counted."""
    weigh = _WEIGHTS.get(type(value))
    return 16 if weigh is None else weigh(value)


def _of_values(values: Collection[Any]) -> int:
    return sum(map(_weight, values)) if len(values) <= 64 else 2 * _SHORT


_WEIGHTS: dict[type, Callable[[Any], int]] = {
    str: len,
    np.ndarray: lambda value: 12 * value.size,
    Terms: lambda value: 40 * len(value.indices),
    TextTokens: lambda value: 100 * len(value),
    list: _of_values,
    dict: lambda value: _of_values(value.values()),
}


@dataclass(frozen=True)
class Writing:
    """A format. `whole` writes a value. `mapping` and `sequence` get the length of a container and return the bytes
    before, between and after its items."""

    whole: Callable[[Any], bytes]
    mapping: Callable[[int], tuple[bytes, bytes, bytes]]
    sequence: Callable[[int], tuple[bytes, bytes, bytes]]
    colon: bytes

    def parts(self, value: Any) -> list[bytes]:
        made, part = [], bytearray()
        for piece in self._pieces(value):
            check()
            part += piece
            if len(part) >= _PART:
                made.append(bytes(part))
                part.clear()
        return [*made, bytes(part)] if part else made

    def _pieces(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, dict) and not is_short(value):
            first, between, last = self.mapping(len(value))
            for i, (key, item) in enumerate(value.items()):
                yield (between if i else first) + self.whole(key) + self.colon
                yield from self._pieces(item)
            yield last
        elif _is_sequence(value) and not is_short(value):
            first, between, last = self.sequence(len(value))
            for i, item in enumerate(value):
                yield between if i else first
                yield from self._pieces(item)
            yield last
        else:
            yield self.whole(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | TextTokens) or (isinstance(value, np.ndarray) and value.ndim > 1)


def _plain(value: Any) -> Any:
    """A value that orjson and ormsgpack can write, for one that they cannot, arrays of other layouts included."""
    match value:
        case np.ndarray():
            return value.tolist()
        case np.generic():
            return value.item()
        case TextTokens():
            return list(value)
        case Terms():
            pairs = zip(value.indices.tolist(), value.values, strict=True)
            return [{"index": index, "value": weight} for index, weight in pairs]
    raise TypeError(f"{type(value)} cannot be sent")


def _header(length: int, short: int, long: int) -> tuple[bytes, bytes, bytes]:
    """The header of msgpack's arrays and maps: https://github.com/msgpack/msgpack/blob/master/spec.md"""
    if length < 16:
        return bytes([short | length]), b"", b""
    size = 2 if length < 1 << 16 else 4
    return bytes([long + (size == 4)]) + length.to_bytes(size, "big"), b"", b""


JSON = Writing(
    lambda value: orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY),
    lambda _: (b"{", b",", b"}"),
    lambda _: (b"[", b",", b"]"),
    b":",
)
MSGPACK = Writing(
    lambda value: ormsgpack.packb(value, default=_plain, option=ormsgpack.OPT_SERIALIZE_NUMPY),
    lambda length: _header(length, 0x80, 0xDE),
    lambda length: _header(length, 0x90, 0xDC),
    b"",
)
