"""Parquet files. To read a part, at most its row group has to be read from the beginning."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bei.bulk.rows import LONGEST, PART_BYTES, Part, check_depth, check_text, conform, require_column
from bei.errors import SetupError, short

_BATCH = 1024  # rows that are read at once; they may be long
_BUFFER = 1 << 20  # bytes


class Parquet:
    """Continues where it stopped, so that a part costs only the rows since the part before; at most its row group."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._file: Path | None = None
        self._at = 0

    def scan(self, file: Path, column: str, part_rows: int) -> Iterator[tuple[Part, pa.Schema]]:
        with pq.ParquetFile(file, buffer_size=_BUFFER) as parquet:
            schema = parquet.schema_arrow
            require_column(file, schema.names, column)
            check_depth(file, schema)
            if not _holds_text(schema.field(column).type):
                raise SetupError(f"{file}: column {short(column)} is {schema.field(column).type}, not string")
            for part in _cut(file, self._checked(file, parquet, column, part_rows), part_rows):
                yield part, schema.remove_metadata()

    def _checked(self, file: Path, parquet: pq.ParquetFile, column: str, part_rows: int) -> Iterator[pa.RecordBatch]:
        """All batches, read as they will be read again. None extends beyond the end of a part of `part_rows` rows."""
        first = 0
        for batch in parquet.iter_batches(min(_BATCH, part_rows), use_threads=False):
            _check_column(file, first, batch.column(column), column)
            end = (first // part_rows + 1) * part_rows - first
            yield from (piece for piece in (batch.slice(0, end), batch.slice(end)) if len(piece))
            first += len(batch)

    def read(self, part: Part, schema: pa.Schema, column: str) -> pa.Table:
        with self._lock:
            if part.file != self._file or not self._group(part.first) <= self._at <= part.first:
                self._seek(part)
            for _ in self._take(part.first - self._at):
                pass
            return conform(pa.Table.from_batches(self._take(part.row_count)), schema)

    def _group(self, row: int) -> int:
        """The first row of the row group that contains a row."""
        first: int = self._starts[bisect_right(self._starts, row) - 1]
        return first

    def _seek(self, part: Part) -> None:
        parquet = pq.ParquetFile(part.file, buffer_size=_BUFFER)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._file, self._starts = part.file, list(accumulate(sizes[:-1], initial=0))
        self._at = self._group(part.first)
        groups = [i for i, start in enumerate(self._starts) if start >= self._at]
        self._batches = parquet.iter_batches(min(_BATCH, part.row_count), row_groups=groups, use_threads=False)
        self._rest: pa.RecordBatch | None = None

    def _take(self, row_count: int) -> Iterator[pa.RecordBatch]:
        while row_count:
            batch = self._rest or next(self._batches)
            taken, rest = batch.slice(0, row_count), batch.slice(row_count)
            self._rest = rest if len(rest) else None
            self._at += len(taken)
            row_count -= len(taken)
            yield taken


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _check_column(file: Path, first: int, texts: pa.Array, column: str) -> None:
    texts = texts.cast(pa.large_string())
    texts.validate(full=True)  # that it is UTF-8
    bad = pc.index(pc.fill_null(pc.equal(pc.binary_length(texts), 0), True), True).as_py()
    longest = pc.max(pc.binary_length(texts)).as_py()
    if longest is not None and longest > LONGEST:
        raise SetupError(f"{file}: a row from {first + 1} on has a text of {longest} bytes; {LONGEST} are the most")
    if bad >= 0:
        check_text(file, first + bad, texts[bad].as_py(), column)


def _cut(file: Path, batches: Iterator[pa.RecordBatch], part_rows: int) -> Iterator[Part]:
    """Parts of `part_rows` rows, or of fewer that hold PART_BYTES."""
    first = count = size = 0
    for batch in batches:
        more = sum(map(_size, batch.columns))
        if count and (count + len(batch) > part_rows or size + more > PART_BYTES):
            yield Part(file, first, count)
            first, count, size = first + count, 0, 0
        count, size = count + len(batch), size + more
    if count:
        yield Part(file, first, count)


def _size(column: pa.Array) -> int:
    """The bytes of a column as it is written: without the dictionary that stores a repeated text once."""
    size: int = column.cast(_without_dictionaries(column.type)).nbytes
    return size


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _without_dictionaries(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    return kind
