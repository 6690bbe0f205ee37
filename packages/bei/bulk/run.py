"""One job of `bei embed`: its identity, whether it was done already, and its parts one by one."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

from bei.bulk.first_read import first_read
from bei.bulk.identity import identity
from bei.bulk.inputs import Input, take_long_fields
from bei.bulk.outputs import EMBEDDING, Output
from bei.bulk.parts import Parts
from bei.bulk.report import Step
from bei.bulk.report import write as write_report
from bei.bulk.worker import PARTS_AT_ONCE, Done, Job, Worker
from bei.checkpoint import sources
from bei.checkpoint.load import Checkpoint
from bei.errors import Invalid, SetupError, short
from bei.files import expanded
from bei.progress import Bar
from bei.serving.routes import ROUTES
from bei.settings import Settings
from bei.tasks import vectors

log = logging.getLogger("bei")


def embed(
    settings: Settings,
    input: Path,
    output: Path,
    *,
    column: str = "text",
    dimensions: int | None = None,
    normalize: bool = True,
    prompt_name: str | None = None,
    part_rows: int = 4096,
    ray: str | None = None,
    workers: int | None = None,
    report: Path | None = None,
) -> int:
    """Embed every row of a file or folder, and return the number of rows. Finished parts are not computed again.

    A part has `part_rows` rows; a run that is killed loses at most a few parts. `ray` is the address of a cluster, and
    `workers` the number of models that it loads. `report` is the file of a page about the texts. Raises SetupError, and
    KeyboardInterrupt with the number of rows that are kept.
    """
    target = Output(output.absolute())
    settings = _anywhere(settings)
    checkpoint = sources.load(settings)
    _check(checkpoint, dimensions, prompt_name)
    log.info("reading all of %s once, to check every row", input)
    source = first_read(input.absolute(), column, part_rows)
    _check_columns(source, input)
    parts = Parts(target.parts_folder, len(source.parts))
    job = Job(settings, source, parts, dimensions, normalize, prompt_name)
    job_identity = identity(job, checkpoint, part_rows)
    if target.is_complete(job_identity):
        log.info("%s is complete already", output)
        parts.drop()
        steps: Sequence[Step] = ()
    else:
        with parts.claim(output, job_identity):
            steps = _run(job, ray, workers)
            target.finish(parts, job_identity)
    if report is not None:
        write_report(report, source, steps)
    return source.row_count


def _anywhere(settings: Settings) -> Settings:
    """The settings with absolute folders, so that workers on other machines find them."""
    places: dict[str, object] = {"cache_dir": expanded(settings.cache_dir).absolute()}
    if settings.source == "LOCAL":
        places["repo"] = str(expanded(settings.repo).absolute())
    return settings.model_copy(update=places)


def _check(checkpoint: Checkpoint, dimensions: int | None, prompt_name: str | None) -> None:
    """Raises SetupError for an option that the model does not support, before anything is read."""
    if checkpoint.task != "embedding":
        raise SetupError(
            f"{checkpoint.name} is no embedding model, its task is {checkpoint.task}: `bei embed` writes one vector a "
            f"text; start `bei serve` and POST {ROUTES[checkpoint.task][0]}"
        )
    try:
        vectors.check(dimensions, checkpoint.spec.row_size)
    except Invalid as exc:
        raise SetupError(f"--{exc.message.replace('`', '')}") from None
    if prompt_name is not None and prompt_name not in checkpoint.prompts.texts:
        known = ", ".join(sorted(checkpoint.prompts.texts)) or "none"
        raise SetupError(f"--prompt-name {short(prompt_name)} is not one of the model's prompts: {known}")


def _check_columns(source: Input, place: Path) -> None:
    if EMBEDDING in source.schema.names:
        raise SetupError(f"{place} has a column {short(EMBEDDING)} already: rename it")


def _run(job: Job, ray: str | None, workers: int | None) -> Sequence[Step]:
    """Do the parts that are not finished; returns the steps of it."""
    steps: list[Step] = []
    pending = job.parts.pending()
    if not pending:
        return steps
    done, started = _rows_kept(job), time.monotonic()
    if ray is None:
        results = _here(job, pending)
    else:
        from bei.bulk import cluster

        results = cluster.run(job, pending, ray, workers)
    with Bar(job.input.row_count, "texts", done=done, more="tokens") as bar:
        try:
            for one in results:
                bar.add(one.row_count, one.tokens)
                steps.append(Step(time.monotonic() - started, one.row_count, one.tokens, one.cut))
        except KeyboardInterrupt:
            kept = f"{_rows_kept(job):,} of {job.input.row_count:,} rows are kept in {job.parts.folder}"
            raise KeyboardInterrupt(kept) from None
    return steps


def _rows_kept(job: Job) -> int:
    """The rows of finished parts."""
    pending = set(job.parts.pending())
    return sum(part.row_count for index, part in enumerate(job.input.parts) if index not in pending)


def _here(job: Job, pending: list[int]) -> Iterator[Done]:
    """As `cluster.run`, with one model in this process, which is loaded when this returns."""
    take_long_fields()
    worker = Worker(job)

    def results() -> Iterator[Done]:
        said: SimpleQueue[Done | Future[None]] = SimpleQueue()
        with closing(worker), ThreadPoolExecutor(PARTS_AT_ONCE, "part") as pool:
            left = [pool.submit(worker.embed, index, said.put) for index in pending]
            for future in left:
                future.add_done_callback(said.put)
            try:
                while left:
                    one = said.get()
                    if isinstance(one, Future):
                        one.result()
                        left.remove(one)
                    else:
                        yield one
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return results()
