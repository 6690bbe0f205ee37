"""Outputs: one Parquet or npy file, or a folder of Parquet files."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bei import files
from bei.bulk.parts import Identity, Parts, check, noted
from bei.errors import SetupError

EMBEDDING = "embedding"
"""The column of vectors."""
_PARQUET, _NPY = (".parquet", ".pq"), (".npy",)


@dataclass(frozen=True)
class Output:
    """A `.parquet` file with the input's columns and the vectors, an `.npy` file of the vectors, float32[rows, D], or a
    folder of Parquet files, whose names are in the order of the rows."""

    place: Path

    def __post_init__(self) -> None:
        if self.place.suffix.lower() not in ("", *_PARQUET, *_NPY) and not self.place.is_dir():
            raise SetupError(f"{self.place}: write to a file that ends with .parquet or .npy, or to a folder")

    @property
    def is_folder(self) -> bool:
        return self.place.is_dir() or not self.place.suffix

    @property
    def parts_folder(self) -> Path:
        return self.place if self.is_folder else self.place.with_name(f"{self.place.name}.parts")

    @property
    def _note(self) -> Path:
        """The file of the job's identity, beside an npy file, which cannot hold it."""
        return self.place.with_name(f"{self.place.name}.json")

    def is_complete(self, identity: Identity) -> bool:
        """Whether the output is there and belongs to this job. Raises SetupError if it belongs to another."""
        if self.is_folder or not self.place.exists():
            return False
        found = self._identity()
        if found is None:
            raise SetupError(
                f"{self.place} exists, and `bei embed` did not write it; remove it, or name another output"
            )
        check(self.place, found, identity)
        return True

    def _identity(self) -> Identity | None:
        if self.place.suffix.lower() in _NPY:
            return noted(self._note, self._note.read_bytes()) if self._note.exists() else None
        try:
            stated = (pq.read_schema(self.place).metadata or {}).get(b"bei")
        except (OSError, pa.ArrowInvalid):
            return None
        return None if stated is None else noted(self.place, stated)

    def finish(self, parts: Parts, identity: Identity) -> None:
        """Make one file of the parts, put it in its place, and remove the parts."""
        if self.is_folder:
            return
        if self.place.suffix.lower() in _NPY:
            with files.replacing(self._note, parts.folder, files.SHARED) as note:
                note.write_text(json.dumps(identity, indent=2) + "\n")
        with files.replacing(self.place, parts.folder, files.SHARED) as unfinished:
            (_join_npy if self.place.suffix.lower() in _NPY else _join_parquet)(unfinished, parts, identity)
        parts.drop()


def _join_parquet(file: Path, parts: Parts, identity: Identity) -> None:
    schema = pq.read_schema(parts.place(0)).with_metadata({"bei": json.dumps(identity)})
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for index in range(parts.count):
            table = pq.read_table(parts.place(index))
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=len(table))


def _join_npy(file: Path, parts: Parts, identity: Identity) -> None:
    width = pq.read_schema(parts.place(0)).field(EMBEDDING).type.list_size
    header = {"descr": "<f4", "fortran_order": False, "shape": (identity["rows"], width)}
    with file.open("wb") as out:
        np.lib.format.write_array_header_2_0(out, header)
        for index in range(parts.count):
            for vectors in pq.read_table(parts.place(index), columns=[EMBEDDING])[EMBEDDING].chunks:
                out.write(vectors.flatten().to_numpy())
