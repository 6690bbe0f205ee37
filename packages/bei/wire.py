"""Messages with arrays over a stream socket: what the processes of one server say to each other.

bytes of the head, 4, and of the arrays, 8 | head, msgpack: [message, [[dtype, shape], …]] | arrays, each at a
multiple of 8 bytes
"""

import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import ormsgpack

SIZES = struct.Struct("<IQ")
_ALIGNMENT = 8
_JOINED = 1 << 16  # bytes; copying less is quicker than another call


def parts(message: Any, arrays: Sequence[np.ndarray] = ()) -> list[Any]:
    """The message as buffers that follow each other."""
    arrays = [np.ascontiguousarray(array) for array in arrays]
    head = ormsgpack.packb([message, [[array.dtype.str, array.shape] for array in arrays]])
    found: list[Any] = [SIZES.pack(len(head), sum(map(_padded, arrays))), head]
    for array in arrays:
        found += [array.reshape(-1).view(np.uint8).data, bytes(_padded(array) - array.nbytes)]
    return found


def read(head: bytes | bytearray, content: bytes | bytearray) -> tuple[Any, list[np.ndarray]]:
    """The message and its arrays, which are views of `content`."""
    message, described = ormsgpack.unpackb(head)
    arrays, start = [], 0
    for dtype, shape in described:
        array = np.frombuffer(content, dtype, int(np.prod(shape)), start).reshape(shape)
        arrays.append(array)
        start += _padded(array)
    return message, arrays


def send(to: socket.socket, message: Any, arrays: Sequence[np.ndarray] = ()) -> None:
    """Raises OSError where the other side is gone."""
    made = parts(message, arrays)
    if sum(map(len, made)) <= _JOINED:
        to.sendall(b"".join(made))
    else:
        for part in made:
            to.sendall(part)


def receive(source: socket.socket) -> tuple[Any, list[np.ndarray]]:
    """Raises OSError where the other side is gone."""
    head, content = SIZES.unpack(_exactly(source, SIZES.size))
    return read(_exactly(source, head), _exactly(source, content))


def _padded(array: np.ndarray) -> int:
    return array.nbytes + -array.nbytes % _ALIGNMENT


def _exactly(source: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        received = source.recv_into(view)
        if not received:
            raise ConnectionResetError("the other side is gone")
        view = view[received:]
    return buffer
