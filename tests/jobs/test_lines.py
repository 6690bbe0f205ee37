"""The lines of a job's input: a line is read as it was written, from any place on, or refused with its number."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.jobs import lines
from bei.jobs.lines import Refused, check, parsed, read
from tests.support.calls import json_values
from tests.support.stored_jobs import ENDPOINT, line

bodies = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
rows = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" ") + b"\n"),
    st.sampled_from([b"\n", b" \t\n", b"{}\n", b"[1]\n", b"null\n"]),
    st.builds(lambda name, body: line(name, body=body), st.text(min_size=1, max_size=6), bodies),
    st.builds(
        lambda field, value: line("a", **{field: value}), st.sampled_from(["method", "url", "body"]), json_values
    ),
)


@given(st.lists(rows, max_size=12), st.booleans())
def test_every_row_is_a_line_or_a_fault_with_its_number(tmp_path_factory, written, ends):
    raw = b"".join(written)
    file = tmp_path_factory.mktemp("lines") / "input"
    file.write_bytes(raw if ends else raw.removesuffix(b"\n"))
    found = list(read(file))
    assert [number for _, number, _ in found] == [i for i, row in enumerate(written, 1) if row.strip()]
    good, faults, seen = 0, {}, set()
    for row, number, end in found:
        try:
            one = parsed(row, number, end, ENDPOINT)
        except Refused as refused:
            faults[number] = refused.fault
            assert refused.fault.line == number and refused.fault.message
            continue
        sent = json.loads(row, parse_int=float)
        assert (one.custom_id, json.loads(one.body, parse_int=float)) == (sent["custom_id"], sent["body"])
        good += 1
        if one.custom_id in seen:
            faults[number] = None
        seen.add(one.custom_id)
    count, said = check(file, ENDPOINT)
    assert count == len(found)
    assert {fault.line for fault in said if fault.line} == faults.keys()
    assert bool(said) == (not found or good < len(found) or len(seen) < good)
    for _, number, end in found:  # from the end of any line on
        assert list(read(file, end, number)) == [one for one in found if one[1] > number]


@pytest.mark.parametrize(
    ("row", "code", "message", "param"),
    [
        (b"{\n", "invalid_json_line", "the line is not JSON", None),
        (b"\xff\n", "invalid_json_line", "the line is not JSON", None),
        (b"[" * 100_000, "invalid_json_line", "the line is not JSON", None),
        (b"[]\n", "invalid_json_line", "the line is not a JSON object", None),
        (b'{"custom_id": "a"}\n', "missing_required_parameter", "`method` is required", "method"),
        (line("a", body=None), "missing_required_parameter", "`body` is required", "body"),
        (line(3), "invalid_custom_id", "`custom_id` must be a string of 1 to 512 letters, not 3", "custom_id"),
        (line(""), "invalid_custom_id", "`custom_id` must be a string of 1 to 512 letters, not ''", "custom_id"),
        (line("a" * 513), "invalid_custom_id", "`custom_id` must be a string of 1 to 512 letters", "custom_id"),
        (line("a", method="GET"), "invalid_method", "`method` must be POST, not 'GET'", "method"),
        (line("a", url="/v1/rerank"), "mismatched_url", "`url` must be the batch's endpoint, /v1/embeddings", "url"),
        (line("a", body=[1]), "invalid_body", "`body` must be an object, not [1]", "body"),
        (b" " * lines.LONGEST + b"{}", "line_too_long", "the line has more than 4194304 bytes", None),
    ],
    ids=lambda of: of[:12] if isinstance(of, bytes) else None,
)
def test_a_fault_says_what_is_wrong(row, code, message, param):
    with pytest.raises(Refused) as refused:
        parsed(row, 7, len(row), ENDPOINT)
    fault = refused.value.fault
    assert (fault.code, fault.message[: len(message)], fault.param, fault.line) == (code, message, param, 7)


def test_of_a_line_that_is_too_long_little_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 100)
    (tmp_path / "input").write_bytes(b"a" * 1050 + b"\n" + line("b", body={}))
    (long, first, _), (short, second, _) = read(tmp_path / "input")
    assert (len(long), first, json.loads(short)["custom_id"], second) == (101, 1, "b", 2)
    count, (fault,) = check(tmp_path / "input", ENDPOINT)
    assert (count, fault.code, fault.line) == (2, "line_too_long", 1)


def test_bounds_of_a_whole_input(tmp_path, monkeypatch):
    file = tmp_path / "input"
    file.write_bytes(b"\n \n")
    assert [fault.code for fault in check(file, ENDPOINT)[1]] == ["empty_file"]
    file.write_bytes(line("a") + line("b") + line("a"))
    (fault,) = check(file, ENDPOINT)[1]
    assert (fault.code, fault.line, fault.message) == ("duplicate_custom_id", 3, "`custom_id` 'a' is that of line 1")
    file.write_bytes(b"{\n" * 300)
    assert len(check(file, ENDPOINT)[1]) == 100
    monkeypatch.setattr(lines, "MOST_LINES", 2)
    file.write_bytes(line("a") + line("b") + line("c"))
    assert [fault.code for fault in check(file, ENDPOINT)[1]] == ["too_many_lines"]


def test_texts_of_a_line_are_those_of_its_longest_list():
    for body, texts in (({"input": "a"}, 1), ({"input": ["a", "b"], "x": [1]}, 2), ({}, 1), ({"input": []}, 0)):
        assert parsed(line("a", body=body), 1, 1, ENDPOINT).texts == texts
