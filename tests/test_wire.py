"""Messages between the processes of a server arrive as they were sent, however the socket splits them."""

import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from bei import wire

MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ARRAYS = arrays_of.arrays(
    st.sampled_from([np.dtype(name) for name in ("int8", "int32", "int64", "float16", "float32")]),
    arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
)


@given(MESSAGES, st.lists(ARRAYS, max_size=4))
def test_what_is_sent_arrives(message, arrays):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(2):  # one after the other on one line
            wire.send(ours, message, arrays)
        for _ in range(2):
            found, found_arrays = wire.receive(theirs)
            assert found == message
            for expected, array in zip(arrays, found_arrays, strict=True):
                assert array.dtype == expected.dtype
                assert array.ctypes.data % array.dtype.alignment == 0
                np.testing.assert_array_equal(array, expected)


def test_more_than_a_socket_holds():
    states = np.arange(3 << 20, dtype=np.float32).reshape(1024, -1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=wire.send, args=(ours, "rows", [states[:, ::2], states]))
        sending.start()
        _, (half, whole) = wire.receive(theirs)
        sending.join()
    np.testing.assert_array_equal(half, states[:, ::2])
    np.testing.assert_array_equal(whole, states)


def test_a_lost_line_is_an_error_of_the_system():
    ours, theirs = socket.socketpair()
    wire.send(ours, "a", [np.zeros(4)])
    ours.close()
    with theirs:
        assert wire.receive(theirs)[0] == "a"
        with pytest.raises(OSError, match="gone"):
            wire.receive(theirs)


@pytest.mark.parametrize("cut", [1, 15, 16, 20, -1])
def test_half_a_message_is_an_error_of_the_system(cut):
    sent = bytearray()
    wire.send(_Sink(sent), ["a", 1], [np.zeros(4)])
    ours, theirs = socket.socketpair()
    ours.sendall(sent[:cut])
    ours.close()
    with theirs, pytest.raises(OSError, match="gone"):
        wire.receive(theirs)


class _Sink:
    def __init__(self, into: bytearray):
        self._into = into

    def sendall(self, part: bytes) -> None:
        self._into += part
