"""The state of a job: a folder with one Parquet file for each finished part, and `_job.json`, the job's identity.

The file of a part is written beside its place and renamed, so that it exists only when it is complete. A run that was
killed at any moment therefore resumes with the parts that have no file.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from bei import files
from bei.errors import SetupError, one_line, why

Identity = Mapping[str, Any]
"""Everything that decides the vectors: the rows, the model and how it reads them, as JSON."""


@dataclass(frozen=True)
class Parts:
    """The finished ones of `count` parts, in a folder that every worker sees."""

    folder: Path
    count: int

    def place(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}.parquet"

    def pending(self) -> list[int]:
        return [index for index in range(self.count) if not self.place(index).exists()]

    def write(self, index: int, table: pa.Table) -> None:
        with files.replacing(self.place(index), mode=files.SHARED) as unfinished:
            pq.write_table(table, unfinished, row_group_size=len(table), use_dictionary=False)

    def agree(self, engine: str) -> None:
        """Raises SetupError if another worker of this job computes with another engine or precision."""
        place = self.folder / "_engine"
        with suppress(FileExistsError), place.open("x") as first:
            first.write(engine)
        with self._open(place, "r") as begun:
            agreed = begun.read() or engine
        if agreed != engine:
            raise SetupError(
                f"{self.folder} was begun by {one_line(agreed)}, this machine computes by {engine}: "
                "set --engine and --precision"
            )

    def drop(self) -> None:
        """Remove the folder, but only the files of a job in it."""
        for name in ("part-*.parquet", "_job.json", "_engine", ".*.unfinished"):
            for file in self.folder.glob(name):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()

    @contextmanager
    def claim(self, output: Path, identity: Identity) -> Iterator[None]:
        """A lock on the job of this folder. Raises SetupError if another process holds it, or if the parts that are
        there belong to another job."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise SetupError(f"{output} cannot be written: {why(exc)}") from None
        self._refuse_strangers(output)
        with self._open(self.folder / "_job.json", "a+") as job:
            try:
                fcntl.flock(job, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(f"{output} is being written by another process") from None
            job.seek(0)
            begun = job.buffer.read()
            if any(self.folder.glob("part-*.parquet")):
                check(output, noted(self.folder / "_job.json", begun), identity)
            else:
                (self.folder / "_engine").unlink(missing_ok=True)
                job.truncate(0)
                job.write(json.dumps(identity, indent=2) + "\n")
                job.flush()
                os.fsync(job.fileno())
            for left in self.folder.glob(".*.unfinished"):
                left.unlink()
            yield

    @staticmethod
    def _open(place: Path, mode: files.Mode) -> TextIO:
        try:
            return files.open_unlinked(place, mode)
        except OSError as exc:
            raise SetupError(f"{place} cannot be opened: {why(exc)}") from None

    def _refuse_strangers(self, output: Path) -> None:
        """Raises SetupError for a link: its target would be read as ours, or overwritten."""
        if not (self.folder / "_job.json").exists() and any(self.folder.iterdir()):
            raise SetupError(f"{output} is a folder with other files in it; name a new one")
        if link := next((file for file in self.folder.iterdir() if file.is_symlink()), None):
            raise SetupError(f"{link} is a link, which `bei embed` does not follow; remove it, or name another output")


def noted(place: Path, text: str | bytes) -> Identity:
    """The identity that a job wrote. Raises SetupError for a file that no job wrote."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SetupError(f"{place} was not written by `bei embed`; remove it, or name another output")
    return found


def check(output: Path, found: Identity, wanted: Identity) -> None:
    """Raises SetupError, which names the first difference, if the output belongs to another job."""
    for name in wanted:
        if found.get(name) != wanted[name]:
            has, needs = (json.dumps(value)[:24].strip('"') for value in (found.get(name), wanted[name]))
            raise SetupError(
                f"{output} belongs to another job: its `{name}` is {has}, here it is {needs}; "
                "remove it, or name another output"
            )
