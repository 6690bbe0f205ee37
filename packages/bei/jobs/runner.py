"""Runs jobs, one after the other in the order of their making: in a thread with an event loop of its own, of the one
process that holds the store's lock. When that process dies, another one goes on from the last commit."""

import asyncio
import fcntl
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bei.errors import Error, why
from bei.jobs import lines
from bei.jobs.records import Fault, Job, StoredFile
from bei.jobs.run import Ask, Run
from bei.jobs.store import Store
from bei.metrics import Metrics

log = logging.getLogger("bei")

_LOOK_SECONDS = 0.25  # between two looks for jobs
_COUNT_SECONDS = 5.0
_SWEEP_SECONDS = 60.0
_PAUSE_SECONDS = 5.0  # after a fault of the folder, such as a full disk
_TRIES = 3  # of a job that this module cannot run


class Runner:
    """The jobs of a store. `ask` is called in the runner's own event loop."""

    def __init__(self, store: Store, ask: Ask, metrics: Metrics):
        self._store, self._ask, self._metrics = store, ask, metrics
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._running: set[str] = set()
        self._faults: dict[str, int] = {}
        self._swept = self._counted = float("-inf")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks for no more lines. Answers that are there are kept."""
        self._stopping.set()

    def join(self) -> None:
        """Waits for the end, after `stop`."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._turn() as is_ours:
                    if is_ours:
                        asyncio.run(self._work())
            except Exception:
                log.exception("the jobs of %s cannot be run now", self._store.folder)
                self._stopping.wait(_PAUSE_SECONDS)
            self._stopping.wait(_LOOK_SECONDS)

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether this process is the one that runs jobs, as long as the block lasts."""
        with self._store.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    async def _work(self) -> None:
        """Until the end, or a fault of either."""
        loops = [asyncio.create_task(self._check_new()), asyncio.create_task(self._run_checked())]
        try:
            while not self._stopping.is_set():
                ended, _ = await asyncio.wait(loops, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for one in ended:
                    one.result()
        finally:
            for one in loops:
                one.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    # -- new jobs ------------------------------------------------------------------------------------------------------

    async def _check_new(self) -> None:
        """Checks the lines of each new job, and ends those that nobody wants any more, also while another one runs."""
        while True:
            jobs = await asyncio.to_thread(self._store.open_jobs)
            for job in jobs:
                if job.progress.status == "validating":
                    await asyncio.to_thread(self._check, job)
                elif job.cancellation is not None or job.order.expires <= self._store.clock():
                    await self._run_job(job.order.id)
            await self._count(len(jobs))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _count(self, open_jobs: int) -> None:
        if self._store.clock() > self._counted + _COUNT_SECONDS:
            self._counted = self._store.clock()
            self._metrics.observe_jobs(open_jobs, await asyncio.to_thread(self._store.used))

    def _check(self, job: Job) -> None:
        order, progress = job.order, job.progress
        try:
            self._store.file(order.input_file_id)
            progress.total, progress.faults = lines.check(self._store.content(order.input_file_id), order.endpoint)
        except (Error, OSError) as exc:
            message = f"the input file {order.input_file_id} cannot be read: {why(exc)}"
            progress.faults = [Fault(code="invalid_input_file", message=message, param="input_file_id")]
        progress.become("failed" if progress.faults else "in_progress", self._store.clock())
        self._store.job_folder(order.id).keep(progress)
        log.info("%s: %s, %d lines for %s", order.id, progress.status, progress.total, order.endpoint)

    # -- checked jobs --------------------------------------------------------------------------------------------------

    async def _run_checked(self) -> None:
        while True:
            jobs = await asyncio.to_thread(self._store.open_jobs)
            job = next((job for job in jobs if job.progress.status in ("in_progress", "finalizing")), None)
            if job is not None:
                await self._run_job(job.order.id)
            elif not jobs and self._store.clock() > self._swept + _SWEEP_SECONDS:
                self._swept = self._store.clock()
                await asyncio.to_thread(self._store.sweep)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _run_job(self, id: str) -> None:
        """Runs a job, unless it runs already. One that cannot be run, fails."""
        if id in self._running:
            return
        self._running.add(id)
        try:
            job = self._store.job(id)
            if job.progress.status == "in_progress":
                await Run(self._store, job, self._ask, self._metrics).finish()
            if not job.is_final:
                await asyncio.to_thread(self._end, job)
        except Exception as exc:
            self._note_fault(id, exc)
        finally:
            self._running.discard(id)

    def _note_fault(self, id: str, fault: Exception) -> None:
        self._faults[id] = self._faults.get(id, 0) + 1
        log.error("%s: fault %d", id, self._faults[id], exc_info=fault)
        if self._faults[id] == _TRIES:
            progress = self._store.job(id).progress
            progress.faults = [Fault(code="internal_error", message=f"the server cannot run it: {why(fault)}")]
            progress.become("failed", self._store.clock())
            self._store.job_folder(id).keep(progress)

    def _end(self, job: Job) -> None:
        """Makes files of the answers, and the job final. It may be called again after it was cut off."""
        order, progress, folder = job.order, job.progress, self._store.job_folder(job.order.id)
        for id, kind, place, size in (
            (order.output_file_id, "output", folder.output, progress.output_size),
            (order.error_file_id, "errors", folder.errors, progress.error_size),
        ):
            if size:
                self._store.adopt(place, self._made(job, id, kind, size))
        progress.become(progress.ending, self._store.clock())
        folder.keep(progress)
        log.info("%s: %s; of %d lines %d failed", order.id, progress.status, progress.total, progress.failed)

    def _made(self, job: Job, id: str, kind: str, size: int) -> StoredFile:
        now, seconds = self._store.clock(), job.order.output_seconds
        expires = None if seconds is None else now + seconds
        name = f"{job.order.id}_{kind}.jsonl"
        return StoredFile(id=id, filename=name, purpose="batch_output", size=size, created=now, expires=expires)
