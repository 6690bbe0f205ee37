"""The tasks behind one async interface: check, tokenize, queue, finish. Every host stands on this."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bei import engines, metrics
from bei.batching import Entry, Queue, Request
from bei.checkpoint import load as checkpoints
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Engine, RowKind
from bei.engines.cpus import available_cpus
from bei.errors import Empty, Error, Expired, NotReady, Overloaded, SetupError, TooLarge
from bei.scheduler import Outcome, Scheduler
from bei.settings import Settings
from bei.tasks import vectors
from bei.tokenizer import Direction, Encoding, Input, Token, Tokenizer

log = logging.getLogger("bei")

State = Literal["loading", "ready", "failed", "draining"]
_PROBE_AFTER = 30.0  # seconds without a finished batch before a health check runs one of its own
_PROBE_TIMEOUT = 30.0


@dataclass(frozen=True)
class Usage:
    """What a request cost: characters and tokens (truncated, with specials and prompt), and seconds; queue and
    inference are means over its texts."""

    characters: int
    tokens: int
    tokenization: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True)
class Answer:
    """rows: float32[N, D] for embeddings, a list of float32[tokens, H] for states, float32[N] for similarities."""

    rows: np.ndarray | list[np.ndarray]
    usage: Usage


@dataclass(frozen=True)
class Options:
    """How texts are read. `truncate` None means the server's own default; `deadline` is a time.monotonic()."""

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None
    deadline: float = float("inf")


class _Pending(Request):
    """A request on its way: one future, settled by its last outcome or its first error."""

    __slots__ = ("future", "loop", "missing", "outcomes")

    def __init__(self, entries: int, deadline: float):
        super().__init__(deadline)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.outcomes: list[Outcome | None] = [None] * entries
        self.missing = entries

    def settle(self, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome.result, Error):
            self.dropped = True  # its other entries need not run
            self.future.set_exception(outcome.result)
            return
        self.outcomes[outcome.entry.index] = outcome
        self.missing -= 1
        if not self.missing:
            self.future.set_result(self.outcomes)


def _deliver(outcomes: Sequence[Outcome]) -> None:
    """From an engine's thread to the loops that wait: one wake-up a batch and loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_loop[outcome.entry.request.loop].append(outcome)
    for loop, of_loop in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, of_loop)


def _settle(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        outcome.entry.request.settle(outcome)


class Service:
    """One loaded model. Every coroutine may be awaited from any event loop, many at a time."""

    checkpoint: Checkpoint
    engine: Engine

    def __init__(self, settings: Settings):
        self.settings = settings
        self.state: State = "loading"
        self._scheduler: Scheduler | None = None
        self._running = 0

    def load(self) -> None:
        """Fetch, read, build, warm up; then ready. Blocking. Raises SetupError."""
        try:
            with _step(f"checkpoint {self.settings.repo}"):
                checkpoint = checkpoints.load(self.settings)
            with _step("engine"):
                engine = engines.create(self.settings, checkpoint)
            self.start(checkpoint, engine)
        except BaseException:
            self.state = "failed"
            raise

    def start(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Serve a checkpoint on an engine: the second half of `load`."""
        settings = self.settings
        self.checkpoint, self.engine = checkpoint, engine
        self._tokenizer = Tokenizer(checkpoint, _default_prompt(settings, checkpoint))
        self.tokenization_workers = settings.tokenization_workers or available_cpus()
        self._tokenizing = ThreadPoolExecutor(self.tokenization_workers, "tokenizer")
        budget = min(settings.max_num_tokens, engine.token_budget)
        queue = Queue(budget, settings.max_batch_size, settings.max_queue_tokens)
        self._scheduler = Scheduler(engine, queue, _deliver)
        with _step("warm-up"):
            asyncio.run(self._probe())
        if self.state == "loading":  # else it was told to stop meanwhile
            self.state = "ready"
            metrics.ready.set(1)
        metrics.info.labels(settings.served_model_name, engine.name, engine.device, engine.precision).set(1)

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        options: Options = Options(),
    ) -> Answer:
        """One vector a text. Raises Invalid, Empty, TooLarge, Overloaded, NotReady, Expired or EngineFailed."""
        if self.state == "ready":
            vectors.check(dimensions, self.checkpoint.spec.row_size)
        rows, usage = await self._rows(inputs, options, "pooled")
        return Answer(vectors.finish(np.stack(rows), dimensions=dimensions, normalize=normalize), usage)

    async def embed_tokens(self, inputs: Sequence[Input], *, options: Options = Options()) -> Answer:
        """The last hidden state of every token of each text, specials included."""
        return Answer(*await self._rows(inputs, options, "tokens"))

    async def similarity(self, source: str, sentences: Sequence[str], *, options: Options = Options()) -> Answer:
        """The cosine of the source to each sentence."""
        rows, usage = await self._rows([source, *sentences], options, "pooled")
        return Answer(vectors.similarities(rows[0], np.stack(rows[1:])), usage)

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[list[Token]]:
        self._check_ready()
        self._check_size(texts)
        prompt = self._tokenizer.prompt(prompt_name)
        return await self._off_loop(
            lambda: self._tokenizer.tokenize(texts, add_special_tokens=add_special_tokens, prompt=prompt)
        )

    async def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        self._check_ready()
        self._check_size(ids)
        return await self._off_loop(lambda: self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    async def check(self) -> None:
        """Raises NotReady unless requests are answered and the engine finished a real forward in the last 30 s;
        runs one where it has not."""
        self._check_ready()
        idle = time.monotonic() - self._scheduler.last_success
        if self._scheduler.failing or idle > _PROBE_AFTER:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    await self._probe()
            except (Error, TimeoutError) as exc:
                raise NotReady(f"the engine does not answer: {exc}") from None

    def drain(self) -> None:
        """Admit no more; what is queued goes on."""
        self.state = "draining"
        metrics.ready.set(0)

    def close(self) -> None:
        """Drain, wait for what is queued, and stop the threads."""
        self.drain()
        if self._scheduler is not None:
            self._scheduler.close()
            self._tokenizing.shutdown(wait=False)

    async def _rows(self, inputs: Sequence[Input], options: Options, kind: RowKind) -> tuple[list[np.ndarray], Usage]:
        started = time.monotonic()
        self._check_ready()
        self._check_size(inputs)
        with self._admission():
            prompt = self._tokenizer.prompt(options.prompt_name)
            truncate = self.settings.auto_truncate if options.truncate is None else options.truncate
            encodings = await self._off_loop(
                lambda: self._tokenizer.encode(
                    inputs, truncate=truncate, direction=options.truncation_direction, prompt=prompt
                )
            )
            tokenized = time.monotonic()
            outcomes = await self._run(encodings, kind, options.deadline)
        for encoding in encodings:
            metrics.input_length.observe(len(encoding.ids))
        usage = _usage(encodings, outcomes, started, tokenized)
        return [outcome.result for outcome in outcomes], usage

    async def _run(self, encodings: Sequence[Encoding], kind: RowKind, deadline: float) -> list[Outcome]:
        pending = _Pending(len(encodings), deadline)
        entries = [Entry(pending, i, e.ids, prompt_tokens=e.prompt_tokens, rows=kind) for i, e in enumerate(encodings)]
        self._scheduler.submit(entries)
        try:
            async with asyncio.timeout(None if deadline == float("inf") else deadline - time.monotonic()):
                return await pending.future
        except TimeoutError:
            raise Expired("the request's deadline passed") from None
        finally:
            pending.dropped = True  # the client may have left; what has not run need not

    async def _probe(self) -> None:
        """One token through the whole path."""
        await self._run(self._tokenizer.encode(["a"], truncate=True), "pooled", float("inf"))

    async def _off_loop(self, work):
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    @contextmanager
    def _admission(self) -> Iterator[None]:
        if self._running >= self.settings.max_concurrent_requests:
            raise Overloaded("Model is overloaded")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _check_ready(self) -> None:
        if self.state != "ready":
            raise NotReady(f"the model is {self.state}" if self.state != "failed" else "the model failed to load")

    def _check_size(self, inputs: Sequence[object]) -> None:
        if not inputs:
            raise Empty("`inputs` cannot be empty")
        limit = self.settings.max_client_batch_size
        if len(inputs) > limit:
            raise TooLarge(f"batch size {len(inputs)} > maximum allowed batch size {limit}")


def _default_prompt(settings: Settings, checkpoint: Checkpoint) -> str | None:
    """The settings' prompt, or the named one, or the model's own. Raises SetupError for a name that the model lacks."""
    if settings.default_prompt is not None:
        return settings.default_prompt
    prompts = checkpoint.prompts
    name = settings.default_prompt_name or prompts.default
    if name is not None and name not in prompts.texts:
        known = ", ".join(sorted(prompts.texts)) or "none"
        raise SetupError(f"default_prompt_name {name!r} is not one of the model's prompts: {known}")
    return None if name is None else prompts.texts[name]


def _usage(encodings: Sequence[Encoding], outcomes: Sequence[Outcome], started: float, tokenized: float) -> Usage:
    return Usage(
        characters=sum(encoding.characters for encoding in encodings),
        tokens=sum(len(encoding.ids) for encoding in encodings),
        tokenization=tokenized - started,
        queue=sum(outcome.queue for outcome in outcomes) / len(outcomes),
        inference=sum(outcome.inference for outcome in outcomes) / len(outcomes),
        total=time.monotonic() - started,
    )


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    log.info("%s ...", name)
    yield
    log.info("%s: %.1f s", name, time.monotonic() - started)
