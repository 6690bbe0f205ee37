"""One loaded model that turns parts of the input into parts of the output, alone or as one of many."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bei.bulk.inputs import Input, reader
from bei.bulk.outputs import EMBEDDING
from bei.bulk.parts import Parts
from bei.errors import Error, SetupError, one_line
from bei.serving.answers import Options
from bei.serving.lists import answered, unhurried
from bei.serving.service import Service
from bei.settings import Settings

PARTS_AT_ONCE = 3  # one is read, one computed and one written, so that the engine never waits for a file


@dataclass(frozen=True)
class Job:
    """A job as plain data, for any worker."""

    settings: Settings
    input: Input
    parts: Parts
    dimensions: int | None
    normalize: bool
    prompt_name: str | None


@dataclass(frozen=True)
class Done:
    """The counts of finished rows; `cut` are those whose texts were too long to be read whole."""

    row_count: int
    tokens: int
    cut: int


class Worker:
    """Loads the model; then `embed` may be called by PARTS_AT_ONCE threads. Raises SetupError."""

    def __init__(self, job: Job):
        self._job = job
        self._readers = {suffix: reader(suffix) for suffix in {part.file.suffix for part in job.input.parts}}
        self._service = Service(unhurried(job.settings))
        self._service.load()
        self._model = self._service.model
        facts = self._model.engine.facts
        job.parts.agree(f"{facts.name} in {facts.computes_in}")

    def embed(self, index: int, tell: Callable[[Done], object]) -> None:
        """Read a part, compute its vectors and write both. `tell` is called with counts as rows are computed. Raises
        SetupError that names the part's rows."""
        job = self._job
        part = job.input.parts[index]
        try:
            table = self._readers[part.file.suffix].read(part, job.input.schema, job.input.column)
            vectors = asyncio.run(self._vectors(table[job.input.column].to_pylist(), tell))
            job.parts.write(index, table.append_column(EMBEDDING, _column(vectors)))
        except (Error, OSError, pa.ArrowException) as exc:
            raise SetupError(f"{part}: {one_line(exc)}") from exc

    async def _vectors(self, texts: Sequence[str], tell: Callable[[Done], object]) -> np.ndarray:
        """float32[texts, D]"""
        job = self._job

        async def request(some: Sequence[str]) -> np.ndarray:
            options = Options(prompt_name=job.prompt_name)
            answer = await self._model.embed(some, dimensions=job.dimensions, normalize=job.normalize, options=options)
            tell(Done(len(some), answer.usage.tokens, answer.usage.truncated_texts))
            rows: np.ndarray = answer.rows
            return rows

        return np.concatenate(await answered(texts, request, job.settings.max_client_batch_size, len))

    def close(self) -> None:
        self._service.close()


def _column(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(vectors).reshape(-1), vectors.shape[1])
