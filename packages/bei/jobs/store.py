"""The folder of `--batch-dir`: files with their records, and a folder for each job. Several processes use it at once.

files/file-…          the content; it counts once its record is there
files/file-….json     its record
jobs/batch_…/         order.json and, once there is one, cancellation.json, by whoever is asked by a client;
                      progress.json, output.jsonl and errors.jsonl, by the one process that runs jobs
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

from bei import files
from bei.errors import Invalid, NotFound, Overloaded, SetupError, TooLarge, short, why
from bei.jobs import records
from bei.jobs.records import Cancellation, Job, Order, Progress, StoredFile
from bei.settings import Settings

MOST_FILE_BYTES = 200_000_000
"""OpenAI's own limit of an uploaded file."""
MOST_RECORDS = 10_000
"""Of files, and of jobs."""
KEPT = 30 * 86400.0
"""Seconds for which an uploaded file is kept, and the record of a job that ended."""

_UPLOADS = 16  # at once in a process; each holds some hundred KiB
_AROUND = 1 << 16  # bytes of a form beside its file
_LEFT = 3600.0  # seconds after which a file without a record belongs to nobody
_LOOK_EACH = 1 << 23  # bytes of an upload between two looks at the room


@dataclass(frozen=True)
class JobFolder:
    """The files of a job."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "output.jsonl"

    @property
    def errors(self) -> Path:
        return self.folder / "errors.jsonl"

    def read(self) -> Job | None:
        """None for a job that is not there."""
        order = records.read(self.folder / "order.json", Order)
        if order is None:
            return None
        progress = records.read(self.folder / "progress.json", Progress)
        return Job(order, progress or Progress(), self.cancellation())

    def cancellation(self) -> Cancellation | None:
        return records.read(self.folder / "cancellation.json", Cancellation)

    def keep(self, progress: Progress) -> None:
        records.write(self.folder / "progress.json", progress)


class Store:
    """Methods about one file or job raise NotFound without it."""

    def __init__(self, folder: Path, most_bytes: int, clock: Callable[[], float] = time.time):
        """Raises SetupError for a folder that cannot be used."""
        self.folder, self.most_bytes, self.clock = folder, most_bytes, clock
        self._files, self._jobs = folder / "files", folder / "jobs"
        self._uploads = threading.BoundedSemaphore(_UPLOADS)
        self._ended: set[str] = set()
        """Jobs that are known to be final, which they stay."""
        try:
            for inner in (self._files, self._jobs):
                files.make_folder(inner)
            with (folder / "lock").open("a"):
                pass
        except OSError as exc:
            raise SetupError(f"setting batch_dir: {exc.filename}: {why(exc)}") from None
        if not all(map(files.is_ours, (self._files, self._jobs))):
            raise SetupError(f"setting batch_dir: {folder} is not ours alone: give it an owner and a mode of its own")

    @classmethod
    def of(cls, settings: Settings) -> "Store | None":
        """The store of the settings. Raises SetupError."""
        if settings.batch_dir is None:
            return None
        return cls(files.expanded(settings.batch_dir).absolute(), settings.max_batch_dir_bytes)

    @property
    def lock(self) -> Path:
        """The file whose holder runs the jobs."""
        return self.folder / "lock"

    # -- files ---------------------------------------------------------------------------------------------------------

    def files(self) -> list[StoredFile]:
        """In the order of their making."""
        found = (records.read(place, StoredFile) for place in self._files.glob("file-*.json"))
        return sorted(filter(self._is_kept, found), key=lambda file: (file.created, file.id))

    def file(self, id: str) -> StoredFile:
        found = records.read(self._record(id), StoredFile) if records.is_id(id) else None
        if not self._is_kept(found):
            raise NotFound(f"no file {short(id)}; it was never here, was deleted or has expired", param="file_id")
        return found

    def _is_kept(self, file: StoredFile | None) -> TypeGuard[StoredFile]:
        return file is not None and (file.expires is None or self.clock() < file.expires)

    def content(self, id: str) -> Path:
        """The place of a file's content, whether it has a record or not."""
        return self._files / id

    def _record(self, id: str) -> Path:
        return self._files / f"{id}.json"

    @contextmanager
    def upload(self, size: int = 0) -> Iterator["Upload"]:
        """A file that a client sends, of `size` bytes if that is known; it stays if the block ends without an error,
        and counts once it is added. Raises TooLarge where there is no room, and Overloaded."""
        if size > MOST_FILE_BYTES + _AROUND:
            raise _too_large()
        self._check_count(self._files, "files")
        self.check_room(size)
        if not self._uploads.acquire(blocking=False):
            raise Overloaded(f"the server takes {_UPLOADS} uploads at once")
        try:
            id = records.new_id("file-")
            with files.replacing(self.content(id)) as unfinished, unfinished.open("wb") as opened:
                yield Upload(id, opened, self)
        finally:
            self._uploads.release()

    def add(self, file: StoredFile) -> StoredFile:
        """Gives a file, whose content is there, its record."""
        records.write(self._record(file.id), file)
        return file

    def adopt(self, place: Path, file: StoredFile) -> None:
        """Makes a file of one that a job wrote. It may be called again after it was cut off."""
        if place.exists():
            place.rename(self.content(file.id))
        self.add(file)

    def delete(self, id: str) -> None:
        """Raises Invalid for the input of a job that needs it."""
        self.file(id)
        user = next((job for job in self.open_jobs() if job.order.input_file_id == id), None)
        if user is not None:
            raise Invalid(f"{id} is the input of {user.order.id}, which has not ended; cancel that first")
        self._remove(id)

    def _remove(self, id: str) -> None:
        self._record(id).unlink(missing_ok=True)
        self.content(id).unlink(missing_ok=True)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """In the order of their making."""
        return self._sorted(self._jobs.glob("batch_*"))

    @staticmethod
    def _sorted(places: Iterable[Path]) -> list[Job]:
        found = (JobFolder(place).read() for place in places)
        return sorted(filter(None, found), key=lambda job: (job.order.created, job.order.id))

    def open_jobs(self) -> list[Job]:
        found = self._sorted(place for place in self._jobs.glob("batch_*") if place.name not in self._ended)
        self._ended.update(job.order.id for job in found if job.is_final)
        return [job for job in found if not job.is_final]

    def job(self, id: str) -> Job:
        found = self.job_folder(id).read() if records.is_id(id) else None
        if found is None:
            raise NotFound(f"no batch {short(id)}", param="batch_id")
        return found

    def job_folder(self, id: str) -> JobFolder:
        return JobFolder(self._jobs / id)

    def create(self, order: Order) -> Job:
        """Raises TooLarge where there are too many."""
        self._check_count(self._jobs, "batches")
        with files.replacing_folder(self._jobs / order.id) as unfinished:
            records.write(unfinished / "order.json", order)
        return self.job(order.id)

    def cancel(self, id: str) -> Job:
        """Raises Invalid for a job that has ended."""
        job = self.job(id)
        if job.is_final:
            raise Invalid(f"{id} cannot be cancelled: its status is {job.status}")
        if job.cancellation is None:
            records.write(self.job_folder(id).folder / "cancellation.json", Cancellation(at=self.clock()))
        return self.job(id)

    # -- bounds --------------------------------------------------------------------------------------------------------

    def used(self) -> int:
        """The bytes of all files, also of those that are being made."""
        total = 0
        for place in (*self._files.iterdir(), *self._jobs.glob("*/*")):
            with suppress(OSError):  # it was removed meanwhile
                total += place.stat().st_size
        return total

    def check_room(self, size: int = 0) -> None:
        """Raises TooLarge if there are, or would be with so many more, more bytes than there may be."""
        used = self.used()
        if used + size > self.most_bytes:
            raise TooLarge(
                f"the server's files have {used} bytes, and may have {self.most_bytes} (max_batch_dir_bytes); "
                "delete files that you do not need"
            )

    def _check_count(self, folder: Path, kind: str) -> None:
        if sum(1 for place in folder.iterdir() if place.suffix != ".json") >= MOST_RECORDS:
            raise TooLarge(f"the server has {MOST_RECORDS} {kind}, which are the most; delete files, or wait")

    def sweep(self) -> None:
        """Removes what has expired, and what killed processes left. For the process that runs jobs, when none is
        open."""
        now = self.clock()
        for place in self._files.iterdir():
            file = records.read(self._record(place.stem), StoredFile) if records.is_id(place.stem) else None
            with suppress(OSError):  # removed meanwhile
                if file is not None and not self._is_kept(file):
                    self._remove(file.id)
                elif file is None and place.stat().st_mtime + _LEFT < now:
                    place.unlink()
        for place in self._jobs.iterdir():
            job = JobFolder(place).read()
            with suppress(OSError):
                since = (
                    place.stat().st_mtime + _LEFT
                    if job is None
                    else max(job.progress.times.values(), default=now) + KEPT
                )
                if (job is None or job.is_final) and since < now:
                    shutil.rmtree(place, ignore_errors=True)


def _too_large() -> TooLarge:
    return TooLarge(f"`file` has more than {MOST_FILE_BYTES} bytes; cut it in several", param="file")


class Upload:
    """The content of a file while it comes."""

    def __init__(self, id: str, file: BinaryIO, store: Store):
        self.id, self._file, self._store = id, file, store
        self.size = self._looked_at = 0

    def write(self, data: bytes) -> None:
        """Raises TooLarge, or OSError."""
        self.size += len(data)
        if self.size > MOST_FILE_BYTES:
            raise _too_large()
        if self.size - self._looked_at > _LOOK_EACH:
            self._looked_at = self.size
            self._store.check_room()
        self._file.write(data)

    def finish(self) -> None:
        """All bytes are where files are kept. Blocking."""
        self._file.flush()
        self._store.check_room()
        os.fsync(self._file.fileno())
