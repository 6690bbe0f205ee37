"""Messages between the processes of a server arrive as they were sent, whatever pieces the socket makes of them. One
that its reader does not know is refused by the name of the field."""

import socket
import threading
from dataclasses import dataclass, fields, make_dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from bei import messages, wire
from bei.engines import messages as engine_messages
from bei.engines.base import Batch, EngineFacts
from bei.server import workers

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ARRAYS = arrays_of.arrays(
    st.sampled_from([np.dtype(name) for name in ("int8", "int32", "int64", "float16", "float32")]),
    arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
)


@dataclass(slots=True)
class Note:
    text: object


@dataclass(frozen=True, kw_only=True)
class Picture:
    pixels: np.ndarray
    title: object
    mask: np.ndarray | None = None


NOTES, PICTURES = wire.Reader(Note), wire.Reader(Picture)
BOTH = wire.Reader[Note | Picture](Note, Picture)


@given(st.lists(st.builds(Note, VALUES) | st.builds(Picture, pixels=ARRAYS, title=VALUES, mask=st.none() | ARRAYS)))
def test_what_is_sent_arrives(sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(2):  # one after the other on one line
            wire.send(ours, *sent)
        for _ in range(2):
            found = BOTH.receive(theirs)
            assert [type(message) for message in found] == [type(message) for message in sent]
            for message, expected in zip(found, sent, strict=True):
                for field in fields(message):
                    check_equal(getattr(message, field.name), getattr(expected, field.name))


def check_equal(found: object, expected: object) -> None:
    if not isinstance(expected, np.ndarray):
        assert found == expected
        return
    assert found.dtype == expected.dtype
    assert found.ctypes.data % found.dtype.alignment == 0
    np.testing.assert_array_equal(found, expected)


def test_more_than_a_socket_holds():
    states = np.arange(3 << 20, dtype=np.float32).reshape(1024, -1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent = Picture(pixels=states[:, ::2], title="rows", mask=states)
        sending = threading.Thread(target=wire.send, args=(ours, sent))
        sending.start()
        (found,) = PICTURES.receive(theirs)
        sending.join()
    np.testing.assert_array_equal(found.pixels, states[:, ::2])
    np.testing.assert_array_equal(found.mask, states)


def test_a_lost_line_is_an_error_of_the_system():
    ours, theirs = socket.socketpair()
    wire.send(ours, Picture(pixels=np.zeros(4), title="a"))
    ours.close()
    with theirs:
        assert PICTURES.receive(theirs)[0].title == "a"
        with pytest.raises(OSError, match="gone"):
            PICTURES.receive(theirs)


@pytest.mark.parametrize("cut", [1, 15, 16, 20, -1])
def test_half_a_message_is_an_error_of_the_system(cut):
    sent = bytearray()
    wire.send(_Sink(sent), Picture(pixels=np.zeros(4), title=["a", 1]))
    ours, theirs = socket.socketpair()
    ours.sendall(sent[:cut])
    ours.close()
    with theirs, pytest.raises(OSError, match="gone"):
        PICTURES.receive(theirs)


class _Sink:
    def __init__(self, into: bytearray):
        self._into = into

    def sendall(self, part: bytes) -> None:
        self._into += part


# -- processes of two versions ---------------------------------------------------------------------------------------

OURS = {field.name: field.type for field in fields(Picture)}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (OURS | {"adapter": str}, "`Picture` with the unknown field `adapter`"),
        (OURS | {"depth": np.ndarray}, r"`Picture` with the unknown field `depth\[\]`"),
        ({"pixels": np.ndarray, "mask": np.ndarray}, "`Picture` without the field `title`"),
        ({"pixels": np.ndarray, "title": str}, r"`Picture` without the field `mask\[\]`"),
        (OURS | {"pixels": list}, "`Picture` with the unknown field `pixels`"),
    ],
)
def test_a_message_with_other_fields_is_refused_by_their_names(theirs, said):
    values = {name: np.zeros(3) if of is np.ndarray else None for name, of in theirs.items()}
    message = make_dataclass("Picture", theirs.items())(**values)
    check_refused(message, f"{said}: the processes are of different versions")


def test_a_message_of_an_unknown_kind_is_refused():
    check_refused(Note("a"), "`Note`, which is not one of Picture")


def check_refused(message: object, said: str) -> None:
    """And what comes after it arrives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, message)
        wire.send(ours, Picture(pixels=np.zeros(4), title="next"))
        with pytest.raises(wire.UnknownMessage, match=said):
            PICTURES.receive(theirs)
        assert PICTURES.receive(theirs)[0].title == "next"


def test_the_order_of_fields_says_nothing():
    other = make_dataclass("Picture", [("title", str), ("mask", np.ndarray), ("pixels", np.ndarray)])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, other("a", None, np.ones(2)))
        (found,) = PICTURES.receive(theirs)
    assert (found.title, found.mask, found.pixels.tolist()) == ("a", None, [1.0, 1.0])


# -- the messages of a server ----------------------------------------------------------------------------------------


def kinds() -> list[type]:
    """All that is read anywhere."""
    modules = (messages, engine_messages, workers)
    readers = [of for module in modules for of in vars(module).values() if isinstance(of, wire.Reader)]
    return sorted({of.kind for reader in readers for of in reader._layouts.values()}, key=lambda kind: kind.__name__)


def test_batches_and_facts_are_messages_themselves():
    assert {Batch, EngineFacts} <= set(kinds())


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_no_value_is_an_array_unawares(kind):
    """Else it would be packed by its place among the values, number by number, or not at all."""
    layout = wire._layout(kind)
    assert {field.name for field in fields(kind)} == set(layout.names)
    for field in fields(kind):
        assert ("ndarray" in str(field.type)) == (f"{field.name}[]" in layout.signature.split())
