"""The steps of a request: admission, tokenization, queue and rows, with their limits."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from bei.batching import Entry, Limits, RowKind
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Task
from bei.engines.base import Engine, EngineFacts
from bei.engines.cpus import available_cpus
from bei.engines.prefixes import worth_sharing
from bei.errors import Empty, Expired, Overloaded, TooLarge
from bei.inflight import InFlight
from bei.metrics import ModelMetrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import Scheduler
from bei.serving.answers import Options, Usage
from bei.serving.pending import Pending
from bei.serving.texts import TextReader, size
from bei.settings import Settings
from bei.tokenizer import Encoding
from bei.work import off_loop


class Encodings(Protocol):
    """Encodings that can be counted and iterated: a list, or the windows of texts."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Encoding]: ...


E = TypeVar("E", bound=Encodings)
R = TypeVar("R")

FLOAT = 4  # bytes of a number of a row
_OF_TOKENS: tuple[Task, ...] = ("entities", "multi_vector", "list_reranker")
_ON_THE_LOOP = 400  # characters, about 0.1 ms
_BULK = 1 << 16  # characters or token ids, about 20 ms


def limits(settings: Settings, facts: EngineFacts) -> Limits:
    """Those of the queue before an engine."""
    return Limits(
        batch_tokens=min(settings.max_num_tokens, facts.token_budget),
        batch_size=settings.max_batch_size,
        tokens=settings.max_queue_tokens,
        size=settings.max_queue_texts,
        requests=settings.max_concurrent_requests,
        brief_apart=facts.has_brief_slot,
    )


class Admission:
    """A place among the requests that run at once, as a plain context manager, for speed. Raises Overloaded."""

    __slots__ = ("_drains_in", "_most", "_running")

    def __init__(self, most: int, drains_in: Callable[[], float]):
        self._most, self._drains_in, self._running = most, drains_in, 0

    def __enter__(self) -> None:
        if self._running >= self._most:
            raise Overloaded(retry_after=self._drains_in())
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1


class Pipeline:
    """The tokenizing threads and the queue of one model. Methods that run the model raise Overloaded, TooLarge,
    Expired, NotReady or EngineFailed."""

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        texts: TextReader,
        in_flight: InFlight,
        metrics: ModelMetrics,
    ):
        self._settings, self._checkpoint, self._engine = settings, checkpoint, engine
        self.scheduler, self._texts, self._in_flight = scheduler, texts, in_flight
        self._metrics = metrics
        self.workers = settings.tokenization_workers or available_cpus()
        self._tokenizing = ThreadPoolExecutor(self.workers, "tokenizer")
        self._tokenizing_bulk = ThreadPoolExecutor(self.workers, "tokenizer-bulk")
        self._kind: RowKind = "tokens" if checkpoint.task in _OF_TOKENS else "pooled"
        self.admission = Admission(settings.max_concurrent_requests, scheduler.drains_in)

    async def run(
        self,
        inputs: Sequence[object],
        read: Callable[[], E],
        options: Options,
        kind: RowKind | None = None,
        answered: float = 0,
    ) -> tuple[E, list[Any], Usage]:
        """All steps of a request: `read` its texts (in a thread, unless it is one short text), queue its entries, wait
        for the rows. The answer takes `answered` bytes per number of a row. Also raises the errors of `read`."""
        started = time.monotonic()
        self.check_size(inputs)
        kind = kind or self._kind
        with self.admission:
            encodings = await self._encodings(inputs, read, options)
            tokenized = time.monotonic()
            self._in_flight.admit(int(self._numbers(encodings, kind) * (FLOAT + answered)))
            pending = Pending(len(encodings), options.deadline, is_background=options.is_background)
            rows = await self._submit(pending, encodings, kind)
        for encoding in encodings:
            self._metrics.observe_length(len(encoding.ids))
        return encodings, rows, _usage(encodings, pending, started, tokenized)

    async def only_read(self, inputs: Sequence[object], read: Callable[[], E], options: Options) -> tuple[E, Usage]:
        """The steps of a request that needs no engine."""
        started = time.monotonic()
        self.check_size(inputs)
        with self.admission:
            encodings = await self._encodings(inputs, read, options)
        for encoding in encodings:
            self._metrics.observe_length(len(encoding.ids))
        return encodings, _usage(encodings, None, started, time.monotonic())

    async def _encodings(self, inputs: Sequence[object], read: Callable[[], E], options: Options) -> E:
        return read() if _is_short(inputs, options) else await self._read_in_time(inputs, read, options)

    async def probe(self) -> None:
        """Sends one token through all steps."""
        encodings = self._texts.tokenizer.encode(["a"], truncate=True)
        await self._submit(Pending(1, float("inf")), encodings, self._kind)

    async def off_loop(self, work: Callable[[], R], *, of: Sequence[object] = ()) -> R:
        """Runs `work` in a thread. `of` are the inputs that it reads; large inputs have threads of their own, so that
        no other request waits behind them."""
        return await off_loop(self._tokenizing_bulk if size(of) > _BULK else self._tokenizing, work)

    def check_size(self, inputs: Sequence[object]) -> None:
        """Raises Empty for a request without texts, or TooLarge for one with too many."""
        if not inputs:
            raise Empty("`inputs` cannot be empty", param="inputs")
        limit = self._settings.max_client_batch_size
        if len(inputs) > limit:
            raise TooLarge(f"batch size {len(inputs)} > maximum allowed batch size {limit}")

    def close(self) -> None:
        """Stops the threads, once nothing runs."""
        for pool in (self._tokenizing, self._tokenizing_bulk):
            pool.shutdown(wait=False)

    def _numbers(self, encodings: Encodings, kind: RowKind) -> int:
        """How many numbers all kept rows have; SPLADE's are not counted, because they are kept as terms."""
        spec = self._checkpoint.spec
        if kind == "tokens":
            rows = (encoding.ids if encoding.marked is None else encoding.marked for encoding in encodings)
            return spec.token_size * sum(map(len, rows))
        return 0 if self._checkpoint.task == "sparse" else spec.row_size * len(encodings)

    async def _read_in_time(self, inputs: Sequence[object], read: Callable[[], E], options: Options) -> E:
        seconds = None if options.deadline == float("inf") else options.deadline - time.monotonic()
        self._in_flight.admit(self._texts.repeated(inputs, options))
        try:
            async with asyncio.timeout(seconds):
                return await self.off_loop(read, of=inputs)
        except TimeoutError:
            raise Expired("the request's deadline passed while its texts were read") from None

    async def _submit(self, pending: Pending, encodings: Encodings, kind: RowKind) -> list[Any]:
        """The kept value of each row."""
        shared = 0
        if self._engine.facts.shares_prefixes and kind == "pooled" and len(encodings) > 1:
            shared = worth_sharing([encoding.ids for encoding in encodings])
        entries = [
            Entry(
                pending,
                i,
                encoding.ids,
                token_types=encoding.token_types,
                prompt_tokens=encoding.prompt_tokens,
                attended=encoding.attended,
                row_kind=kind,
                shared=shared,
                marked=encoding.marked if kind == "tokens" else None,
            )
            for i, encoding in enumerate(encodings)
        ]
        self.scheduler.submit(entries)
        try:
            return await pending.wait()
        finally:
            self.scheduler.drop(pending)  # the client may have left, and the rest need not run


def _is_short(inputs: Sequence[object], options: Options) -> bool:
    """Whether tokenizing takes less time than handing it to a thread would."""
    length = len(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], str) else _ON_THE_LOOP + 1
    return length + len(options.instruction or "") <= _ON_THE_LOOP


def _usage(encodings: Encodings, pending: Pending | None, started: float, tokenized: float) -> Usage:
    return Usage(
        characters=sum(encoding.characters for encoding in encodings),
        tokens=sum(len(encoding.ids) for encoding in encodings),
        truncated_texts=sum(encoding.is_truncated for encoding in encodings),
        tokenization=tokenized - started,
        queue=pending.queue / len(encodings) if pending else 0.0,
        inference=pending.inference / len(encodings) if pending else 0.0,
        total=time.monotonic() - started,
    )
