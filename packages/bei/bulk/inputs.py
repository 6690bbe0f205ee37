"""Inputs: Parquet, JSONL, CSV or text, a file or a folder of files, as parts that can be read separately.

A scan comes first. It reads everything once and keeps nothing. It checks every row before the first one is computed,
and notes the place of each part in its file, so that a part can be read without the rows before it.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import pyarrow as pa

from bei.bulk.parquet import Parquet
from bei.bulk.rows import LONGEST, PART_BYTES, Part, check_depth, check_text, conform, require_column
from bei.errors import SetupError, one_line, short, why


@dataclass(frozen=True)
class Input:
    """All rows in their order. `column` holds the texts, `schema` is of all columns, `sha256` of the files' content."""

    column: str
    schema: pa.Schema
    parts: tuple[Part, ...]
    sha256: str

    @property
    def row_count(self) -> int:
        return sum(part.row_count for part in self.parts)


class Format(Protocol):
    """The reader of one kind of files."""

    def scan(self, file: Path, column: str, part_rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        """The parts of a file, of `part_rows` rows each but the last, with each part's columns. Raises SetupError that
        names a row without a text."""

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        """The rows of a part, with the columns of the whole input."""


def scan(place: Path, column: str, part_rows: int) -> Input:
    """Read and check a file, or all files of a folder in the order of their names. Raises SetupError."""
    digest, parts = hashlib.sha256(), []
    schemas: list[pa.Schema] = []
    for file in _files(place):
        try:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
            for part, schema in reader(file.suffix).scan(file, column, part_rows):
                parts.append(part)
                schemas = [_unified(part, [*schemas, schema])]
                require_column(place, schemas[0].names, column)
                check_depth(part, schema)
        except OSError as exc:
            raise SetupError(f"{file} cannot be read: {why(exc)}") from None
        except MemoryError:
            raise SetupError(
                f"{file} asks for more memory than reading it may take; try a smaller --part-rows"
            ) from None
        except pa.ArrowException as exc:
            raise SetupError(f"{file} cannot be read: {one_line(exc)}") from None
    if not parts:
        raise SetupError(f"{place} has no rows")
    return Input(column, schemas[0], tuple(parts), digest.hexdigest())


def reader(suffix: str) -> Format:
    """The reader for a file-name extension. Keep it: it may remember where it stopped."""
    return _FORMATS[suffix.lower()]()


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise SetupError(f"{place}: No such file or folder")
    files = [place] if place.is_file() else [f for f in sorted(place.iterdir()) if f.name[0] not in "._"]
    for file in files:
        if file.suffix.lower() not in _FORMATS:
            raise SetupError(f"{file}: the file's name must end with {', '.join(_FORMATS)}")
    if not files:
        raise SetupError(f"{place} has no files")
    return files


def _unified(part: Part, schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise SetupError(f"{part}: a column has another type than before: {one_line(exc)}") from None


def take_long_fields() -> None:
    """Set the csv module's limit, which is one for the whole process; only the owner of the process may call it."""
    csv.field_size_limit(LONGEST)


class _Lines:
    """Rows are records of bytes: lines, in CSV also several lines within quotes. Blank lines belong to the next
    record."""

    quoted = False
    blank_lines_are_rows = False

    def scan(self, file: Path, column: str, part_rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        with file.open("rb") as stream:
            names = self.head(stream, column)
            require_column(file, names, column)
            first, offset, records = 0, stream.tell(), self.records(stream)
            while taken := _take(records, part_rows):
                part = Part(file, first, len(taken), offset, sum(map(len, taken)))
                yield part, self.table(part, taken, names, column).schema
                first, offset = first + part.row_count, offset + part.size

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        with part.file.open("rb") as stream:
            names = self.head(stream, column)
            stream.seek(part.offset)
            records = list(self.records(BytesIO(stream.read(part.size))))
        return conform(self.table(part, records, names, column), schema)

    def head(self, stream: BinaryIO, column: str) -> list[str]:
        """The names of the columns, read from the file if it has them."""
        return [column]

    def records(self, stream: BinaryIO) -> Iterator[bytes]:
        lines, size, quotes = [], 0, 0
        for line in stream:
            lines.append(line)
            size += len(line)
            if size > LONGEST:
                raise SetupError(
                    f"{stream.name}: a row is longer than 64 MB: {short(lines[0][:40])}; is a quote left open?"
                )
            quotes += line.count(b'"') if self.quoted else 0
            if quotes % 2 == 0 and (self.blank_lines_are_rows or not line.isspace()):
                yield b"".join(lines)
                lines, size, quotes = [], 0, 0
        if record := b"".join(lines).strip():
            yield record

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        raise NotImplementedError


def _take(records: Iterator[bytes], part_rows: int) -> list[bytes]:
    """The next `part_rows` records, or fewer that hold PART_BYTES."""
    taken: list[bytes] = []
    size = 0
    while len(taken) < part_rows and size < PART_BYTES and (record := next(records, None)) is not None:
        taken.append(record)
        size += len(record)
    return taken


class Text(_Lines):
    """Each line is a row."""

    blank_lines_are_rows = True

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        texts = [_decoded(part, i, record).rstrip("\r\n") for i, record in enumerate(records)]
        for i, text in enumerate(texts):
            check_text(part.file, part.first + i, text, column)
        return pa.table({column: texts})


class JSONL(_Lines):
    """Each line is a JSON object; the columns are the union of their fields."""

    def table(self, part: Part, records: list[bytes], names: list[str], column: str) -> pa.Table:
        rows = [self._object(part, i, record) for i, record in enumerate(records)]
        for i, row in enumerate(rows):
            if column not in row:
                require_column(f"{part.file}: row {part.first + i + 1}", list(row), column)
            check_text(part.file, part.first + i, row[column], column)
        try:
            return pa.Table.from_struct_array(pa.array(rows))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as exc:
            raise SetupError(f"{part}: a field has several types: {one_line(exc)}") from None

    def _object(self, part: Part, i: int, record: bytes) -> dict[str, Any]:
        try:
            row = orjson.loads(_decoded(part, i, record))
        except orjson.JSONDecodeError as exc:
            raise SetupError(f"{part.file}: row {part.first + i + 1} is not JSON: {one_line(exc)}") from None
        if not isinstance(row, dict):
            raise SetupError(f"{part.file}: row {part.first + i + 1} is not a JSON object")
        return row


class CSV(_Lines):
    """The first line has the names. Every value is a string."""

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
            check_text(part.file, part.first + i, text, column)
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


_FORMATS: dict[str, Callable[[], Format]] = {
    **dict.fromkeys((".parquet", ".pq"), Parquet),
    **dict.fromkeys((".jsonl", ".ndjson"), JSONL),
    **{".csv": CSV, ".tsv": TSV, ".txt": Text},
}
