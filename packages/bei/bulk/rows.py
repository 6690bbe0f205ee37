"""A part of the input, and the checks on its rows, for all formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from bei.errors import SetupError, one_line, short

PART_BYTES = 1 << 28
"""The most bytes of a part, which may therefore have fewer rows."""
LONGEST = 1 << 26
"""The most bytes of a row."""
MOST_COLUMNS = 10_000
DEEPEST = 32
"""The deepest nesting of lists and structures. A Parquet file with more than about 50 can be written, but not read."""


@dataclass(frozen=True)
class Part:
    """`row_count` rows of `file`, from row `first` on, counted from 0. `offset` and `size`: where their bytes are, in a
    file of lines."""

    file: Path
    first: int
    row_count: int
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.file}: rows {self.first + 1} to {self.first + self.row_count}"


def check_text(file: Path, row: int, text: Any, column: str) -> None:
    """Raises SetupError unless it is a text that a model can read. The message counts rows from 1."""
    if not isinstance(text, str):
        shown = one_line(orjson.dumps(text).decode()[:40])
        raise SetupError(f"{file}: row {row + 1}: {short(column)} is {shown}, not a text")
    if not text:
        raise SetupError(f"{file}: row {row + 1}: {short(column)} is empty; leave such rows out")


def require_column(where: object, columns: list[str], column: str) -> None:
    """Raises SetupError unless `column` is one of the columns, and there are not too many."""
    if len(columns) > MOST_COLUMNS:
        raise SetupError(f"{where} has {len(columns)} columns, and {MOST_COLUMNS} are the most that are read")
    if column not in columns:
        names = one_line(", ".join(columns)) or "none"
        raise SetupError(f"{where} has no column {short(column)}; it has {names}: choose one with --column")
    if len(set(columns)) < len(columns):
        raise SetupError(f"{where} has two columns of one name: {one_line(', '.join(columns))}")


def check_depth(where: object, schema: pa.Schema) -> None:
    """Raises SetupError for a column that could be written to Parquet but not read."""
    for field in schema:
        if _is_deep(field.type):
            raise SetupError(f"{where}: column {short(field.name)} nests more than {DEEPEST} lists or objects")


def _is_deep(kind: pa.DataType) -> bool:
    level, depth = [kind], 0
    while level and depth <= DEEPEST:
        level = [one.field(i).type for one in level for i in range(one.num_fields)]
        depth += 1
    return bool(level)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with all columns of the input; missing columns are null."""
    places = {name: i for i, name in enumerate(table.column_names)}
    columns = [
        table.column(places[field.name]).cast(field.type) if field.name in places else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
