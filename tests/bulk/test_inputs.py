"""Inputs are read part by part; refusals name the row or column."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei import processes
from bei.bulk import inputs, parquet
from bei.bulk.first_read import first_read
from bei.bulk.inputs import reader, scan
from bei.errors import SetupError

ROWS = [{"id": i, "text": text} for i, text in enumerate(["one", 'a "quoted", one', "two\nlines", "ü €", "last"])]


def whole(source, rows):
    found = scan(source, "text", rows)
    readers = {suffix: reader(suffix) for suffix in (".parquet", ".jsonl", ".csv", ".txt")}
    tables = [readers[part.file.suffix].read(part, found.schema, "text") for part in found.parts]
    assert [len(table) for table in tables] == [part.row_count for part in found.parts]
    return pa.concat_tables(tables)


def write(folder, kind, rows):
    file = folder / f"rows.{kind}"
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
        case "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "csv":
            import csv

            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case "txt":
            file.write_text("".join(row["text"].replace("\n", " ") + "\n" for row in rows))
    return file


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "txt"])
def test_every_format_in_parts_of_any_size(tmp_path, kind, rows):
    table = whole(write(tmp_path, kind, ROWS), rows)
    texts = [row["text"].replace("\n", " ") if kind == "txt" else row["text"] for row in ROWS]
    assert table["text"].to_pylist() == texts
    if kind != "txt":
        assert [int(i) for i in table["id"].to_pylist()] == [0, 1, 2, 3, 4]


text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(text, min_size=1, max_size=20), st.integers(1, 7), st.sampled_from(["parquet", "jsonl", "csv"]))
def test_any_text_comes_back(tmp_path_factory, texts, rows, kind):
    folder = tmp_path_factory.mktemp("any")
    rows_of = [{"text": text, "id": str(i)} for i, text in enumerate(texts)]
    assert whole(write(folder, kind, rows_of), rows).select(["text", "id"]).to_pylist() == rows_of


def test_parquet_parts_in_any_order(tmp_path):
    found = scan(write(tmp_path, "parquet", ROWS), "text", 1)
    read = reader(".parquet").read
    for i in (4, 0, 3, 3, 1):
        assert read(found.parts[i], found.schema, "text").to_pylist() == [ROWS[i]]


def test_a_folder_is_its_files_in_order_under_all_columns(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "three", "id": 2.5}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 1}\n\n{"text": "two", "more": [1]}\n')
    (tmp_path / ".hidden").write_text("")
    assert whole(tmp_path, 1).select(["text", "id", "more"]).to_pylist() == [
        {"text": "one", "id": 1.0, "more": None},
        {"text": "two", "id": None, "more": [1]},
        {"text": "three", "id": 2.5, "more": None},
    ]


def test_marks_and_line_ends_of_windows(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,id\r\none,1\r\n\r\ntwo,2")
    assert whole(tmp_path / "rows.csv", 1).to_pylist() == [{"text": "one", "id": "1"}, {"text": "two", "id": "2"}]
    (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert whole(tmp_path / "rows.txt", 9)["text"].to_pylist() == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.txt", b"", "has no rows"),
        ("a.csv", b"text\n", "has no rows"),
        ("a.csv", b"", "has no column 'text'; it has none"),
        ("a.csv", b"title,body\n1,2\n", "has no column 'text'; it has title, body: choose one with --column"),
        ("a.csv", b"text,text\n1,2\n", "two columns of one name"),
        ("a.csv", b"id,text\n1,one\n2\n", "row 2 has 1 fields, and the first line 2 names"),
        ("a.csv", b"id,text\n1,one\n2,\n", "row 2: 'text' is empty"),
        (
            "a.csv",
            b'id,text\n1,one\n2,5" pipe\n3,three\n4,9" pipe\n',
            "row 2 has a quote inside a field without quotes",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', "row 2: 'text' is 5, not a text"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "row 2 has no column 'text'; it has body: choose one with"),
        ("a.jsonl", b'{"text": null}\n', "row 1: 'text' is null, not a text"),
        ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 33 + b"]" * 33 + b"}", "column 'x' nests more than 32 lists"),
        ("a.jsonl", b'{"text": "a", "x": ' + b'{"a":' * 120 + b"1" + b"}" * 120 + b"}", "'x' nests more than 32"),
        ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}", "row 1 is not JSON"),
        ("a.csv", b",".join(b"c%d" % i for i in range(10_001)) + b"\n", "has 10001 columns, and 10000 are the most"),
        ("a.csv", b"text,a\x1b[2Jb\n1\n", "row 1 has 1 fields"),
        ("a.csv", b"a\x1b[2Jb,c\n1,2\n", r"has no column 'text'; it has a\\x1b\[2Jb, c: choose"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "row 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[]\n', "row 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n', "rows 1 to 2: a field has several types"),
        ("a.txt", b"one\n\nthree\n", "row 2: 'text' is empty"),
        ("a.txt", b"one\n\xff\n", "row 2 is not UTF-8"),
        ("a.parquet", b"PAR1 but no more", "a.parquet cannot be read"),
        ("a.docx", b"one", "the file's name must end with .parquet, .pq, .jsonl"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SetupError, match=message):
        scan(tmp_path / name, "text", 10)


def test_columns_are_counted_over_all_rows(tmp_path):
    """Each row has few columns, all rows together many; the time grows linearly with them."""
    rows = [{"text": "a", **{f"{i}_{k}": 1 for k in range(1000)}} for i in range(11)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SetupError, match="has 10001 columns, and 10000 are the most"):
        scan(tmp_path / "a.jsonl", "text", 1)


def test_the_deepest_that_is_read_is_written_and_read_again(tmp_path):
    """A value that Parquet writes but cannot read would be noticed only at the end."""
    for i, (opened, closed) in enumerate((("[", "]"), ('{"a":', "}"))):
        file = tmp_path / f"{i}.jsonl"
        file.write_text('{"text": "a", "x": ' + opened * 31 + "1" + closed * 31 + "}\n")
        pq.write_table(whole(file, 10), tmp_path / "a.parquet")
        assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [json.loads(file.read_text())]


def says_once(text, times):
    """A Parquet file that stores a text once, in a dictionary, and so many rows that refer to it."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))


def test_a_parquet_file_of_a_kilobyte_is_not_gigabytes_in_memory(tmp_path):
    """The dense kind needs 20 GB at once; the other kind is read a few rows per part."""
    bomb = says_once("a" * 20_000_000, 1000)
    for name, table in (("dictionary", {"text": bomb}), ("beside", {"text": ["a"] * 1000, "x": bomb})):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet", compression="brotli")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 4000
        with pytest.raises(SetupError, match=f"{name}.parquet asks for more memory .* a smaller --part-rows"):
            first_read(tmp_path / f"{name}.parquet", "text", 4096)
    plain = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "dense.parquet", plain, compression="brotli") as writer:
        for _ in range(50):
            writer.write_table(pa.table({"text": ["a" * 1_000_000] * 20}, plain))
    found = first_read(tmp_path / "dense.parquet", "text", 100)
    assert found.row_count == 1000
    assert max(part.row_count for part in found.parts) == 100


def test_parts_are_cut_where_they_hold_much(tmp_path, monkeypatch):
    for module in (inputs, parquet):
        monkeypatch.setattr(module, "PART_BYTES", 1000)
    rows = [{"text": "a" * (1 + i % 7 * 100), "id": i} for i in range(100)]
    for kind in ("parquet", "jsonl", "csv"):
        file = write(tmp_path, kind, rows)
        found = scan(file, "text", 10 if kind == "parquet" else 50)
        assert len(found.parts) > 5
        assert [int(i) for i in whole(file, 50)["id"].to_pylist()] == list(range(100))


def test_a_long_text_of_a_parquet_file(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LONGEST", 100)
    pq.write_table(pa.table({"text": ["a" * 101]}), tmp_path / "a.parquet")
    with pytest.raises(SetupError, match="from 1 on has a text of 101 bytes; 100 are the most"):
        scan(tmp_path / "a.parquet", "text", 10)


def test_first_read_says_what_a_scan_says(tmp_path):
    for kind in ("parquet", "jsonl", "csv", "txt"):
        file = write(tmp_path, kind, ROWS)
        assert first_read(file, "text", 2) == scan(file, "text", 2)
    with pytest.raises(SetupError, match="absent: No such file or folder"):
        first_read(tmp_path / "absent", "text", 2)


@pytest.mark.parametrize(("code", "message"), [("os.abort()", "ended its reader, which may"), ("1 / 0", "by zero")])
def test_a_reader_that_ends_is_one_line(tmp_path, monkeypatch, code, message):
    def start(*_, **options):
        return subprocess.Popen([sys.executable, "-c", f"import os; {code}"], **options)

    monkeypatch.setattr(processes, "start", start)
    with pytest.raises(SetupError, match=message):
        first_read(tmp_path, "text", 2)


def test_nothing_is_set_for_others_by_an_import():
    code = (
        "import csv; before = csv.field_size_limit(); import bei.bulk.inputs; assert csv.field_size_limit() == before"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("bad", [None, ""])
def test_the_row_of_a_parquet_file_is_named(tmp_path, bad):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", bad, "d"]}), file)
    with pytest.raises(SetupError, match="row 3: 'text'"):
        scan(file, "text", 2)
    pq.write_table(pa.table({"text": [1, 2]}), file)
    with pytest.raises(SetupError, match="column 'text' is int64, not string"):
        scan(file, "text", 2)


def test_nothing_there(tmp_path):
    with pytest.raises(SetupError, match="No such file or folder"):
        scan(tmp_path / "absent.csv", "text", 2)
    with pytest.raises(SetupError, match="has no files"):
        scan(tmp_path, "text", 2)


def test_an_open_quote_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LONGEST", 100)
    (tmp_path / "a.csv").write_text('text\n"one\n' + "two\n" * 100)
    with pytest.raises(SetupError, match=r"a row is longer than 64 MB: .*one.*; is a quote left open\?"):
        scan(tmp_path / "a.csv", "text", 10)
