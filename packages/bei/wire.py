"""Messages with arrays over a stream socket: what the processes of one server say to each other.

A message on the wire is: two sizes in bytes, of 8 bytes each, that of the header and that of header and arrays | the
header, msgpack: [message, [[dtype, shape], …]] | the arrays. Header and arrays are padded to multiples of 8 bytes.
"""

import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import ormsgpack

_SIZES = struct.Struct("<QQ")
_JOINED = 1 << 16  # bytes of a part, in the mean; copying less is quicker than another call


def send(to: socket.socket, message: Any, arrays: Sequence[np.ndarray] = ()) -> None:
    """Raises OSError where the other side is gone."""
    header = ormsgpack.packb([message, [[array.dtype.str, array.shape] for array in arrays]])
    parts: list[bytes | memoryview] = [b"", header, _filling(len(header))]
    size = _filled(len(header))
    for array in arrays:
        parts += [np.ascontiguousarray(array).data, _filling(array.nbytes)]
        size += _filled(array.nbytes)
    parts[0] = _SIZES.pack(len(header), size)
    for part in [b"".join(parts)] if size <= _JOINED * len(parts) else parts:
        to.sendall(part)


def receive(source: socket.socket) -> tuple[Any, list[np.ndarray]]:
    """The message and its arrays, which share memory. Raises OSError where the other side is gone."""
    header, size = _SIZES.unpack(_exactly(source, _SIZES.size))
    content = _exactly(source, size)
    message, described = ormsgpack.unpackb(memoryview(content)[:header])
    arrays, start = [], _filled(header)
    for dtype, shape in described:
        array = np.ndarray(shape, dtype, content, start)
        arrays.append(array)
        start += _filled(array.nbytes)
    return message, arrays


def _filling(size: int) -> bytes:
    return bytes(-size % 8)


def _filled(size: int) -> int:
    return size + -size % 8


def _exactly(source: socket.socket, count: int) -> bytearray:
    buffer, received = bytearray(count), 0
    while received < count:
        more = source.recv_into(memoryview(buffer)[received:])
        if not more:
            raise ConnectionResetError("the other side is gone")
        received += more
    return buffer
