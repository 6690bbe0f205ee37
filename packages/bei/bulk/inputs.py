"""What is read: Parquet, JSONL, CSV or text, a file or a folder of them, as parts that can each be read alone.

A scan comes first. It reads everything once and keeps nothing: every row is checked before an hour is spent on the
first one, and a part's place in its file is noted, so that nobody has to read what lies before it again.
"""

import csv
import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import accumulate, islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bei.errors import SetupError

_BATCH = 1024  # rows that are taken off a Parquet file at once, which may be long
_BUFFER = 1 << 20  # bytes
_LONGEST = 1 << 26  # bytes of a row
csv.field_size_limit(_LONGEST)


@dataclass(frozen=True)
class Part:
    """`rows` rows of `file` from its `first` on, counted from 0; `offset` and `size` are their bytes, where rows are
    lines."""

    file: Path
    first: int
    rows: int
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.file}: rows {self.first + 1} to {self.first + self.rows}"


@dataclass(frozen=True)
class Input:
    """All rows in their order. `column` holds the texts, `schema` is of all columns, `sha256` of the files' content."""

    column: str
    schema: pa.Schema
    parts: tuple[Part, ...]
    sha256: str

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


class Format(Protocol):
    """How files of one kind are read."""

    def scan(self, file: Path, column: str, rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        """The parts of a file, `rows` rows each but for the last, with the columns that each has. Raises SetupError
        that names the row which has no text."""

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        """The rows of a part, under the columns of the whole input."""


def scan(place: Path, column: str, rows: int) -> Input:
    """Read and check a file, or all files of a folder in the order of their names. Raises SetupError."""
    digest, parts, schemas = hashlib.sha256(), [], []
    for file in _files(place):
        try:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
            for part, schema in reader(file.suffix).scan(file, column, rows):
                parts.append(part)
                schemas = [_unified(part, [*schemas, schema])]
        except OSError as exc:
            raise SetupError(f"{file} cannot be read: {exc.strerror or exc}") from None
        except pa.ArrowInvalid as exc:
            raise SetupError(f"{file} cannot be read: {_brief(exc)}") from None
    if not parts:
        raise SetupError(f"{place} has no rows")
    return Input(column, schemas[0], tuple(parts), digest.hexdigest())


def reader(suffix: str) -> Format:
    """What reads files whose names end so; keep it, for it may know where it stopped."""
    return _FORMATS[suffix.lower()]()


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise SetupError(f"{place}: No such file or folder")
    files = [place] if place.is_file() else [f for f in sorted(place.iterdir()) if f.name[0] not in "._"]
    for file in files:
        if file.suffix.lower() not in _FORMATS:
            raise SetupError(f"{file}: what to read ends with {', '.join(_FORMATS)}")
    if not files:
        raise SetupError(f"{place} has no files")
    return files


def _unified(part: Part, schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise SetupError(f"{part}: a column has another type than before: {_brief(exc)}") from None


class Parquet:
    """Reads on from where it stopped: a part costs no more than what lies between, and at most its row group."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._file: Path | None = None
        self._at = 0

    def scan(self, file: Path, column: str, rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        with pq.ParquetFile(file, buffer_size=_BUFFER) as parquet:
            schema, first = parquet.schema_arrow, 0
            _require(file, schema.names, column)
            if not _holds_text(schema.field(column).type):
                raise SetupError(f"{file}: column {column!r} is {schema.field(column).type}, not string")
            for batch in parquet.iter_batches(_BATCH, columns=[column], use_threads=False):
                _check_column(file, first, batch.column(0), column)
                first += len(batch)
        for start in range(0, first, rows):
            yield Part(file, start, min(rows, first - start)), schema.remove_metadata()

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        with self._lock:
            if part.file != self._file or not self._group(part.first) <= self._at <= part.first:
                self._seek(part)
            for _ in self._take(part.first - self._at):
                pass
            return _conform(pa.Table.from_batches(self._take(part.rows)), schema)

    def _group(self, row: int) -> int:
        """The first row of the row group that holds a row."""
        return self._starts[bisect_right(self._starts, row) - 1]

    def _seek(self, part: Part) -> None:
        parquet = pq.ParquetFile(part.file, buffer_size=_BUFFER)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._file, self._starts = part.file, list(accumulate(sizes[:-1], initial=0))
        self._at = self._group(part.first)
        groups = [i for i, start in enumerate(self._starts) if start >= self._at]
        self._batches = parquet.iter_batches(_BATCH, row_groups=groups, use_threads=False)
        self._rest: pa.RecordBatch | None = None

    def _take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self._rest or next(self._batches)
            taken, rest = batch.slice(0, rows), batch.slice(rows)
            self._rest = rest if len(rest) else None
            self._at += len(taken)
            rows -= len(taken)
            yield taken


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _check_column(file: Path, first: int, texts: pa.Array, column: str) -> None:
    texts = texts.cast(pa.large_string())
    texts.validate(full=True)  # that it is UTF-8
    bad = pc.index(pc.fill_null(pc.equal(pc.binary_length(texts), 0), True), True).as_py()
    if bad >= 0:
        _check(file, first + bad, texts[bad].as_py(), column)


class _Lines:
    """Rows are records of bytes: lines, or in CSV what quotes make of them. Blank lines belong to the record after."""

    quoted = False
    blank_lines_are_rows = False

    def scan(self, file: Path, column: str, rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        with file.open("rb") as stream:
            names = self.head(stream, column)
            _require(file, names, column)
            first, offset, records = 0, stream.tell(), self.records(stream)
            while taken := list(islice(records, rows)):
                part = Part(file, first, len(taken), offset, sum(map(len, taken)))
                yield part, self.table(part, taken, names, column).schema
                first, offset = first + part.rows, offset + part.size

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        with part.file.open("rb") as stream:
            names = self.head(stream, column)
            stream.seek(part.offset)
            records = list(self.records(BytesIO(stream.read(part.size))))
        return _conform(self.table(part, records, names, column), schema)

    def head(self, stream: BinaryIO, column: str) -> list[str]:
        """The names of the columns, read off the file where it has them."""
        return [column]

    def records(self, stream: BinaryIO) -> Iterator[bytes]:
        lines, size, quotes = [], 0, 0
        for line in stream:
            lines.append(line)
            size += len(line)
            if size > _LONGEST:
                raise SetupError(f"{stream.name}: a row is longer than 64 MB: {lines[0][:40]!r}; is a quote left open?")
            quotes += line.count(b'"') if self.quoted else 0
            if quotes % 2 == 0 and (self.blank_lines_are_rows or not line.isspace()):
                yield b"".join(lines)
                lines, size, quotes = [], 0, 0
        if record := b"".join(lines).strip():
            yield record

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        raise NotImplementedError


class Text(_Lines):
    """A line is a row."""

    blank_lines_are_rows = True

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        texts = [_decoded(part, i, record).rstrip("\r\n") for i, record in enumerate(records)]
        for i, text in enumerate(texts):
            _check(part.file, part.first + i, text, column)
        return pa.table({column: texts})


class JSONL(_Lines):
    """An object a line; the columns are the union of their fields."""

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        rows = [self._object(part, i, record) for i, record in enumerate(records)]
        for i, row in enumerate(rows):
            _check(part.file, part.first + i, row.get(column), column)
        try:
            return pa.Table.from_struct_array(pa.array(rows))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as exc:
            raise SetupError(f"{part}: a field has several types: {_brief(exc)}") from None

    def _object(self, part: Part, i: int, record: bytes) -> dict[str, Any]:
        try:
            row = orjson.loads(_decoded(part, i, record))
        except orjson.JSONDecodeError as exc:
            raise SetupError(f"{part.file}: row {part.first + i + 1} is not JSON: {exc}") from None
        if not isinstance(row, dict):
            raise SetupError(f"{part.file}: row {part.first + i + 1} is not a JSON object")
        return row


class CSV(_Lines):
    """With a line of names first. Every value is a string."""

    quoted = True
    delimiter = ","

    def head(self, stream: BinaryIO, column: str) -> list[str]:
        first = next(self.records(stream), b"")
        stream.seek(len(first))
        return next(
            csv.reader(StringIO(first.decode("utf-8-sig", "replace"), newline=""), delimiter=self.delimiter), []
        )

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        rows = [self._fields(part, i, record, names) for i, record in enumerate(records)]
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        for i, text in enumerate(columns[column]):
            _check(part.file, part.first + i, text, column)
        return pa.table(columns)

    def _fields(self, part: Part, i: int, record: bytes, names: list[str]) -> list[str]:
        rows = csv.reader(StringIO(_decoded(part, i, record).lstrip("\r\n"), newline=""), delimiter=self.delimiter)
        fields, *more = rows
        where = f"{part.file}: row {part.first + i + 1}"
        if more:
            raise SetupError(f"{where} has a quote inside a field without quotes; quote the field, and double it")
        if len(fields) != len(names):
            raise SetupError(f"{where} has {len(fields)} fields, and the first line {len(names)} names")
        return fields


class TSV(CSV):
    delimiter = "\t"


def _decoded(part: Part, i: int, record: bytes) -> str:
    try:
        text = record.decode()
    except UnicodeDecodeError as exc:
        raise SetupError(f"{part.file}: row {part.first + i + 1} is not UTF-8: {exc.reason}") from None
    return text.removeprefix("\ufeff") if part.first + i == 0 else text


def _check(file: Path, row: int, text: Any, column: str) -> None:
    """Raises SetupError unless it is a text that a model can read; rows are named as people count, from 1."""
    if not isinstance(text, str):
        raise SetupError(f"{file}: row {row + 1}: {column!r} is {orjson.dumps(text).decode()[:40]}, not a text")
    if not text:
        raise SetupError(f"{file}: row {row + 1}: {column!r} is empty; leave such rows out")


def _require(file: Path, columns: list[str], column: str) -> None:
    if column not in columns:
        names = ", ".join(columns) or "none"
        raise SetupError(f"{file} has no column {column!r}; it has {names}: choose one with --column")
    if len(set(columns)) < len(columns):
        raise SetupError(f"{file} has two columns of one name: {', '.join(columns)}")


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows under all columns of the input: null where these have none."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())


_FORMATS = {
    **dict.fromkeys((".parquet", ".pq"), Parquet),
    **dict.fromkeys((".jsonl", ".ndjson"), JSONL),
    **{".csv": CSV, ".tsv": TSV, ".txt": Text},
}
