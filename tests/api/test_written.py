"""Values written in parts equal those written at once, and no call writes much."""

import json

import numpy as np
import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bei.api import written
from bei.tasks.entities import Entity
from bei.tasks.sparse import Terms

floats = st.floats(-1, 1, width=32)
shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
matrices = arrays.arrays(np.float32, shapes, elements=floats)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text() | matrices,
    lambda inner: st.lists(inner, max_size=80) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=20,
)


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "_SHORT", 100)
        patch.setattr(written, "_PART", 300)
        yield


@pytest.mark.parametrize("writing", [written.JSON, written.MSGPACK], ids=["json", "msgpack"])
@settings(deadline=None, max_examples=100)
@given(values)
def test_in_parts_as_at_once(writing, value):
    assert b"".join(writing.parts(value)) == writing.whole(value)


@pytest.mark.parametrize("length", [0, 15, 16, 65535, 65536])
def test_the_headers_of_msgpack(length):
    for value in ([0] * length, {str(i): 0 for i in range(length)}):
        assert ormsgpack.unpackb(b"".join(written.MSGPACK.parts(value))) == value


@pytest.mark.parametrize(
    "value",
    [
        np.ones((500, 40), np.float32),
        [np.ones((50, 40), np.float32)] * 10,
        {"data": [{"index": i, "embedding": np.ones(20, np.float32)} for i in range(500)]},
        [[Entity("cat", i, 0, 3, {"A": np.float32(0.5)}) for i in range(200)]] * 3,
        [Terms(np.arange(5), np.ones(5, np.float32))] * 300,
        ["the cat " * 9] * 300,
    ],
    ids=["matrix", "matrices", "openai", "entities", "terms", "texts"],
)
def test_no_call_writes_much(monkeypatch, value):
    sizes = []

    def whole(value):
        sizes.append(len(made := written.JSON.whole(value)))
        return made

    parts = written.Writing(whole, written.JSON.mapping, written.JSON.sequence, written.JSON.colon).parts(value)
    assert json.loads(b"".join(parts)) == json.loads(written.JSON.whole(value))
    assert max(sizes) < 1000
    assert max(map(len, parts)) < 1500
    assert len(parts) > 10
