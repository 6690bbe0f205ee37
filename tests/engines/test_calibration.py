"""Files of texts to calibrate on: read, or refused in a line."""

import csv

import pytest

from bei.engines import calibration
from bei.errors import SetupError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\ntwo\n"),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
        ("a.csv", "id,text\n1,one\n2,two\n"),
    ],
)
def test_texts_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert list(calibration._texts(str(tmp_path / name))) == ["one", "two"]


@pytest.fixture(autouse=True)
def _fields_of_a_new_process():
    """The limit belongs to the process, and a bulk job of another test raises it."""
    before = csv.field_size_limit(1 << 17)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", "a.jsonl cannot be read: Expecting property name"),
        ("a.jsonl", "[" * 100_000, "a.jsonl cannot be read: maximum recursion depth"),
        ("a.jsonl", "[1]", r"a.jsonl: a row is \[1\], not an object"),
        ("a.csv", "text\n" + "x" * 200_000, "a.csv cannot be read: field larger than field limit"),
        ("a.csv", "id\n1\n", "a.csv: a row has none of the columns"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SetupError, match=message):
        list(calibration._texts(str(tmp_path / name)))
