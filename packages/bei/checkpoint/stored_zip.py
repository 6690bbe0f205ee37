"""Where the entries of a zip file lie, for zip files whose entries are stored as they are: torch.save's."""

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

_MOST_ENTRIES = 1 << 17
_MOST_BYTES = 1 << 25  # of the list of entries
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_LONG_END = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_UNKNOWN = 0xFFFFFFFF
_LONG_SIZES = 1  # the extra field of an entry whose sizes have 64 bits


class Place(NamedTuple):
    """The bytes of an entry within the file."""

    start: int
    size: int


def entries(file: IO[bytes]) -> dict[str, Place]:
    """Every entry by its name. Raises ValueError for a file that is truncated, whose entries are compressed, encrypted
    or outside of it, or too many."""
    length = file.seek(0, 2)
    count, size, start = _directory(file, length)
    if count > _MOST_ENTRIES or size > _MOST_BYTES or start + size > length:
        raise ValueError(f"its list of {count} entries is too long")
    found: dict[str, Place] = {}
    for name, header, place_size in _listed(_read(file, start, size), count):
        if name in found:
            raise ValueError("two entries have one name")
        found[name] = _place(file, header, place_size, length)
    return found


def _directory(file: IO[bytes], length: int) -> tuple[int, int, int]:
    """The number of entries, the bytes of their list, and its place. torch.save writes no comment behind it."""
    end = length - _END.size
    mark, *_, count, size, start, comment = _END.unpack(_read(file, end, _END.size))
    if mark != b"PK\5\6" or comment:
        raise ValueError("it is truncated")
    before = end - _LOCATOR.size
    if before >= 0:
        mark, _, place, _ = _LOCATOR.unpack(_read(file, before, _LOCATOR.size))
        if mark == b"PK\6\7":
            mark, *_, count, size, start = _LONG_END.unpack(_read(file, place, _LONG_END.size))
            if mark != b"PK\6\6":
                raise ValueError("its end is damaged")
    return count, size, start


def _listed(directory: bytes, count: int) -> Iterator[tuple[str, int, int]]:
    """Of each entry: its name, the place of its header, and its bytes."""
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        mark, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
        names, extras, comments, header = fields[10], fields[11], fields[12], fields[16]
        at += _ENTRY.size
        name, extra = directory[at : at + names], directory[at + names : at + names + extras]
        at += names + extras + comments
        if mark != b"PK\1\2" or at > len(directory):
            raise ValueError("its list of entries is damaged")
        if method or flags & 1 or packed != size:
            raise ValueError("an entry is compressed or encrypted")
        yield name.decode(), *_long_sizes(extra, size, packed, header)


def _long_sizes(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int]:
    """The place of an entry's header and its bytes, with 64 bits where 32 do not hold them."""
    at = 0
    while at + 4 <= len(extra) and _UNKNOWN in (size, packed, header):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _LONG_SIZES:
            long = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size, packed, header = (long.pop(0) if value == _UNKNOWN else value for value in (size, packed, header))
            break
        at += 4 + length
    if packed != size:
        raise ValueError("an entry is compressed")
    return header, size


def _place(file: IO[bytes], header: int, size: int, length: int) -> Place:
    mark, *_, names, extras = _LOCAL.unpack(_read(file, header, _LOCAL.size))
    start = header + _LOCAL.size + names + extras
    if mark != b"PK\3\4" or start + size > length:
        raise ValueError("an entry is outside of the file")
    return Place(start, size)


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    if not 0 <= start <= file.seek(0, 2):
        raise ValueError("it is truncated")
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it is truncated")
    return content
