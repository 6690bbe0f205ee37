"""Messages between the processes of one server, over a stream socket.

A message is a dataclass. Its fields are arrays, or values of msgpack. The names of the fields travel with it, and a
reader refuses a message with other fields than its own: two processes may have different versions of bei.

The format: the sizes of the header and of all that follows, 8 bytes each | header, msgpack: for each message
[signature, values, [[dtype, shape], …]] | arrays. The header and each array are padded to a multiple of 8 bytes.
"""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_args

import numpy as np
import ormsgpack

M = TypeVar("M")

_SIZES = struct.Struct("<QQ")
_JOINED = 1 << 16  # mean bytes of a part; copying less is faster than another call
_FILLING = tuple(bytes(count) for count in range(8))
_dtype = cache(np.dtype)


class UnknownMessage(Exception):
    """A message with a field that its reader does not know, or without one that its reader needs."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The form of a kind of message. `names` are those of its values, then those of its arrays."""

    kind: Callable[..., Any]
    signature: str
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    arrays: Callable[[Any], tuple[np.ndarray | None, ...]]


def _layout(kind: type[Any]) -> _Layout:
    typed = sorted((field.name, field.type) for field in fields(kind))
    arrays = tuple(name for name, of in typed if of is np.ndarray or np.ndarray in get_args(of))
    values = tuple(name for name, _ in typed if name not in arrays)
    signature = " ".join([kind.__name__, *values, *(f"{name}[]" for name in arrays)])
    return _Layout(kind, signature, values + arrays, _getter(values), _getter(arrays))


class _Layouts(dict[type, _Layout]):
    """The layouts of the kinds that were sent or are read."""

    def __missing__(self, kind: type) -> _Layout:
        return self.setdefault(kind, _layout(kind))


_LAYOUTS = _Layouts()


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) == 1:
        get = attrgetter(*names)
        return lambda message: (get(message),)
    return attrgetter(*names) if names else lambda message: ()


def send(to: socket.socket, *messages: Any) -> None:
    """Sends all messages in one piece. Raises OSError if the other side is gone."""
    header: list[Any] = []
    arrays: list[np.ndarray | None] = []
    for message in messages:
        layout = _LAYOUTS[type(message)]
        own = layout.arrays(message)
        described = [None if array is None else (array.dtype.str, array.shape) for array in own]
        header.append((layout.signature, layout.values(message), described))
        arrays += own
    packed = ormsgpack.packb(header)
    parts: list[bytes | memoryview] = [b"", packed, _FILLING[-len(packed) % 8]]
    size = _filled(len(packed))
    for array in arrays:
        if array is not None:
            parts += np.ascontiguousarray(array).data, _FILLING[-array.nbytes % 8]
            size += _filled(array.nbytes)
    parts[0] = _SIZES.pack(len(packed), size)
    for part in [b"".join(parts)] if size <= _JOINED * len(parts) else parts:
        to.sendall(part)


class Reader(Generic[M]):
    """A reader of messages of these kinds."""

    def __init__(self, *kinds: type[M]):
        self._layouts = {layout.signature: layout for layout in map(_LAYOUTS.__getitem__, kinds)}

    def receive(self, source: socket.socket) -> list[M]:
        """The messages that were sent in one piece; their arrays share memory. Raises OSError if the other side is
        gone, or UnknownMessage once it has read the whole piece."""
        packed, size = _SIZES.unpack(_exactly(source, _SIZES.size))
        content = _exactly(source, size)
        messages, start = [], _filled(packed)
        for signature, values, described in ormsgpack.unpackb(memoryview(content)[:packed]):
            layout = self._layouts.get(signature) or self._refuse(signature)
            for array_of in described:
                array = None
                if array_of is not None:
                    dtype, shape = array_of
                    array = np.ndarray(shape, _dtype(dtype), content, start)
                    start += _filled(array.nbytes)
                values.append(array)
            messages.append(layout.kind(**dict(zip(layout.names, values, strict=True))))
        return messages

    def _refuse(self, signature: str) -> _Layout:
        kind, *theirs = signature.split()
        known = {of.split()[0]: of.split()[1:] for of in self._layouts}
        if kind not in known:
            fault = f"a message `{kind}`, which is not one of {', '.join(known)}"
        elif unknown := [name for name in theirs if name not in known[kind]]:
            fault = f"a message `{kind}` with the unknown field `{unknown[0]}`"
        else:
            missing = next(name for name in known[kind] if name not in theirs)
            fault = f"a message `{kind}` without the field `{missing}`"
        raise UnknownMessage(f"{fault}: the processes are of different versions of bei; restart the server")


def _filled(size: int) -> int:
    return size + -size % 8


def _exactly(source: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    received = source.recv_into(buffer, count, socket.MSG_WAITALL) if count else 0
    while received < count:  # a signal may interrupt a wait for all of it
        more = source.recv_into(memoryview(buffer)[received:], count - received, socket.MSG_WAITALL)
        if not more:
            raise ConnectionResetError("the other side is gone")
        received += more
    return buffer
