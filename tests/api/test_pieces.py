"""Large bodies: counted before they are read, and read in pieces with the same result."""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from bei.api import bodies, pieces
from bei.api.pieces import Bounds
from bei.errors import Invalid, Malformed, TooLarge
from tests.support.calls import call

ANY = Bounds(1 << 30, 1 << 30)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text() | st.text(st.sampled_from('\\"[]{},:é😀 /n'))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=30,
)
put_in = st.sampled_from([b"", b'"', b",", b"[", b"]", b"}", b":", b"\\", b"0", b"\xff"])
bodies_of = st.dictionaries(texts, values, min_size=1) | st.lists(values)


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """Pieces so small that every body has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE", 16)
        patch.setattr(pieces, "_CHUNK", 7)
        patch.setattr(bodies, "_UNCOUNTED", 1 << 9)
        patch.setattr(bodies, "_LARGE", 1 << 10)
        yield


@settings(deadline=None, max_examples=60)
@given(bodies_of, st.booleans(), st.sampled_from([None, 1]))
@example({"a": ["\\" * 40, '"' * 20, "😀" * 20]}, True, None)
@example({"inputs": [[12345, 6, 78]] * 9, "x" * 30: {"y": {}}}, False, 1)
def test_what_is_read_in_pieces_is_what_is_read_at_once(value, ascii_only, indent):
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert pieces.read(raw, ANY) == value


@settings(deadline=None, max_examples=60)
@given(
    bodies_of, st.integers(0, 1 << 20), st.sampled_from([b"", b'"', b",", b"[", b"]", b"}", b":", b"\\", b"0", b"\xff"])
)
@example({"a": [1] * 20}, -1, b",")
@example({"a": 5}, 0, b'{"b": 5[' + b"1," * 20 + b"1]}")
def test_what_is_no_json_is_refused_as_it_would_be_at_once(value, at, put):
    raw = json.dumps(value, ensure_ascii=False).encode()
    at = at % (len(raw) + 1)
    raw = raw[:at] + put + raw[at + (not put) :]
    try:
        expected = from_json(raw)
    except ValueError:
        with pytest.raises((Malformed, Invalid)):
            pieces.read(raw, ANY)
    else:
        if isinstance(expected, list | dict):
            assert pieces.read(raw, ANY) == expected


@settings(deadline=None, max_examples=60)
@given(bodies_of)
def test_the_bounds_are_exact(value):
    raw = json.dumps(value).encode()
    nodes, commas = counted(value)
    pieces.check(raw, Bounds(nodes, max(0, commas - nodes)))
    with pytest.raises(TooLarge, match="strings, lists and objects"):
        pieces.check(raw, Bounds(nodes - 1, 1 << 30))
    if commas:
        with pytest.raises(TooLarge, match="JSON values"):
            pieces.check(raw, Bounds(nodes, commas - 1 - nodes))


def counted(value: object) -> tuple[int, int]:
    """The strings, lists and objects of a value, and the commas between their items."""
    if isinstance(value, str):
        return 1, 0
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    nodes, commas = map(sum, zip((1, max(0, len(value) - 1)), *map(counted, inner), strict=True))
    return nodes, commas


def of(unit: bytes) -> bytes:
    return unit * (3_000_000 // len(unit))


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + of(b"{},") + b"{}]}",
        b'{"inputs":[' + of(b"[9],") + b"[9]]}",
        b'{"inputs":[' + of(b"[],") + b"[]]}",
        b'{"inputs":[' + of(b'"a",') + b'"a"]}',
        b'{"inputs":"a","unknown":[' + of(b'{"k":{}},') + b"0]}",
        b'{"inputs":[' + of(b"null,") + b"null]}",
        b'{"inputs":[' + of(b"1,") + b"1]}",
        of(b"["),
        of(b'"'),
        of(b'{"a":'),
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_many_values_are_refused_before_any_is_made(start_service, monkeypatch, body, size):
    monkeypatch.setattr(pieces, "_CHUNK", 1 << 20)
    monkeypatch.setattr(pieces, "from_json", None)
    service = start_service(max_client_batch_size=32, max_queue_tokens=10_000)
    reply = call(service, "/embed", body[:size])
    assert (reply.status, b"the body has more than" in reply.body) == (413, True)
    assert b"max_client_batch_size" in reply.body or b"max_queue_tokens" in reply.body


def test_no_parser_is_given_more_than_a_piece(start_service, monkeypatch):
    """A parser holds the interpreter's lock until it ends, and nobody else is answered meanwhile."""
    given = []
    monkeypatch.setattr(pieces, "_CHUNK", 1 << 20)
    monkeypatch.setattr(pieces, "_PIECE", 1 << 12)
    monkeypatch.setattr(pieces, "from_json", lambda piece: given.append(len(piece)) or from_json(piece))
    service = start_service()
    rng = random.Random(0)
    for inputs in (
        ["the cat, \"the\" 'dog' " * 100] * 1000,
        "the \\ \n \u00e9 \U0001f600" * 100_000,
        [[rng.randrange(10, 90) for _ in range(500)]] * 1000,
        [rng.randrange(10, 90) for _ in range(500_000)],
        {"source_sentence": "a" * 100_000, "sentences": ["the cat" * 1000] * 100},
    ):
        assert call(service, "/", {"inputs": inputs}).status == 200
    assert len(given) > 1000
    assert max(given) <= 2 * (1 << 12)


LONG = b"v" * 300_000


@pytest.mark.parametrize(
    ("raw", "expected", "message"),
    [
        (b'{"%b": "%b"}' % (LONG, LONG), Malformed, "a value without a name of at most 32768 bytes at byte 0"),
        (b'{"%b": ["%b"]}' % (LONG, LONG), Malformed, "a name, or blanks, of more than"),
        (b'{"a": %b["%b"]}' % (b" " * 300_000, LONG), Malformed, "a name, or blanks, of more than"),
        (b'{"a": %b"%b"%b}' % (b"[" * 150, LONG, b"]" * 150), None, ""),
        (b'{"a": %b"%b"%b}' % (b"[" * 250, LONG, b"]" * 250), Malformed, "more than 200 lists and objects"),
    ],
    ids=["a name", "a name of a list", "blanks", "150 deep", "250 deep"],
)
def test_nothing_around_a_text_makes_a_parser_read_all_of_it(monkeypatch, raw, expected, message):
    given = []
    monkeypatch.setattr(pieces, "_CHUNK", 1 << 20)
    monkeypatch.setattr(pieces, "_PIECE", 1 << 12)
    monkeypatch.setattr(pieces, "from_json", lambda piece: given.append(len(piece)) or from_json(piece))
    if expected is None:
        assert pieces.read(raw, ANY) == json.loads(raw)
    else:
        with pytest.raises(expected, match=message):
            pieces.read(raw, ANY)
    assert max(given, default=0) <= 2 * (1 << 12)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"inputs": ["%b"], "truncate": 3}', 422, "`truncate` must be true, false, NONE, START or END"),
        (b'{"inputs": ["%b", 3]}', 422, "`inputs` must be a string, a list of strings, or token ids"),
        (b'{"x": "%b"}', 422, "`inputs` is required"),
        (b'["%b"]', 422, "the body must be a JSON object"),
        (b'"%b"', 422, "the body must be a JSON object"),
        (b'{"inputs": ["%b"]', 400, "malformed JSON"),
        (b'{"inputs": ["%b" "a"]}', 400, "malformed JSON"),
        (b'{"inputs": ["%b", "\xff"]}', 422, "the body is not valid UTF-8"),
    ],
)
def test_a_large_body_is_refused_in_the_words_of_a_small_one(start_service, body, status, message):
    service = start_service()
    for text in (b"abc", b"abc " * bodies._LARGE):
        reply = call(service, "/embed", body.replace(b"%b", text))
        assert (reply.status, message in reply.body.decode()) == (status, True), reply.body


def test_errors_are_ours(start_service):
    """Also for an object within the body."""
    service = start_service()
    for text in ("abc", "abc " * bodies._LARGE):
        for parameters in (3, "a", [1]):
            body = {"inputs": {"source_sentence": text, "sentences": ["a"]}, "parameters": parameters}
            reply = call(service, "/similarity", body)
            assert (reply.status, "`parameters` should be an object" in reply.body.decode()) == (422, True), reply.body
