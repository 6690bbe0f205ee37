"""The tasks behind one async interface: check, tokenize, queue, finish. Every host stands on this."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from bei import engines, memory, metrics
from bei.batching import Entry, Limits, Queue, Request
from bei.checkpoint import sources
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Scoring, Task
from bei.engines.base import Engine, RowKind
from bei.engines.cpus import available_cpus
from bei.engines.isolated import IsolatedEngine
from bei.engines.prefixes import worth_sharing
from bei.errors import (
    Empty,
    Error,
    Expired,
    Invalid,
    NotReady,
    Overloaded,
    SetupError,
    TooLarge,
    WrongTask,
    one_line,
    refusing,
    short,
)
from bei.inflight import InFlight
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import Outcome, Scheduler
from bei.settings import DefaultRoute, Settings
from bei.tasks import entities, late_interaction, m3, scores, sparse, vectors
from bei.tasks.entities import Strategy
from bei.tokenizer import Direction, Encoding, Input, Role, Token, Tokenizer
from bei.work import off_loop

log = logging.getLogger("bei")

E = TypeVar("E", bound=Collection[Encoding])
R = TypeVar("R")
_Side = dict[str, tuple[Encoding, Any]]  # text → as it was read, and its row
State = Literal["loading", "ready", "failed", "draining"]
_PROBE_AFTER = 30.0  # seconds without a finished batch before a health check runs one of its own
_PROBE_TIMEOUT = 30.0
_BRIEF = 400  # characters, about 0.1 ms
_FLOAT, _JSON = 4, 12  # bytes of a number, and as it is answered
_LABEL, _TERM, _ENTITY = 240, 50, 520  # bytes, about, of one in an answer, and of what makes it
_CHARACTER = 100  # of what is answered with its tokens, each of 400
_BULK = 1 << 16  # characters or token ids, about 20 ms

ROUTES: dict[Task, tuple[str, ...]] = {
    "embedding": ("/v1/embeddings",),
    "reranker": ("/rerank", "/predict"),
    "classifier": ("/predict",),
    "entities": ("/predict_tokens",),
    "sparse": ("/embed_sparse",),
    "multi_vector": ("/embed_all", "/rerank"),
}
"""What may be a model's default route; the first is it unless the settings say otherwise."""


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
    """What a task gave, one row a text or pair; each method says of what type. `order`: int[...] as the scores are, the
    places of the pairs or of the labels, best first."""

    rows: Any
    usage: Usage
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Options:
    """How texts are read. `truncate` None means the server's own default, `truncation_direction` None the tokenizer's;
    `instruction` goes before texts as it is, or into the template of pairs; `max_tokens` cuts sooner than the model,
    and `max_document_tokens` the second text of each pair; `deadline` is a time.monotonic()."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    max_document_tokens: int | None = None
    add_special_tokens: bool = True
    deadline: float = float("inf")


class _Pending(Request):
    """A request on its way: one future, settled by its last outcome or its first error, and waited for once; `queue`
    and `inference` are seconds, the sums over its entries. It holds no entry, nor an error, whose traceback holds it:
    such a ring, with all its rows, stays until the collector comes by."""

    __slots__ = ("future", "inference", "missing", "queue", "rows")

    def __init__(self, entries: int, deadline: float):
        loop = asyncio.get_running_loop()
        super().__init__(deadline, _Loop(loop))
        self.future: asyncio.Future[list[Any]] | None = loop.create_future()
        self.rows: list[Any] = [None] * entries
        self.missing = entries
        self.queue = self.inference = 0.0

    async def wait(self) -> list[Any]:
        """What is kept of each row. Raises Expired, or the error of an outcome."""
        timer = None
        if self.deadline < float("inf"):
            timer = self.future.get_loop().call_later(self.deadline - time.monotonic(), self._expire)
        try:
            return await self.future
        finally:
            self.future = None
            if timer is not None:
                timer.cancel()

    def _expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(Expired("the request's deadline passed"))

    def settle(self, outcome: Outcome) -> None:
        if self.future is None or self.future.done():
            return
        if isinstance(outcome.result, Error):
            self.future.set_exception(outcome.result)
            return
        self.rows[outcome.entry.index] = outcome.result
        self.queue += outcome.queue
        self.inference += outcome.inference
        self.missing -= 1
        if not self.missing:
            self.future.set_result(self.rows)


@dataclass(frozen=True, slots=True)
class _Loop:
    """A receiver of outcomes, from an engine's thread: one wake-up a batch."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        with suppress(RuntimeError):  # it has closed, and nobody waits
            self.loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        outcome.entry.request.settle(outcome)


class Service:
    """One loaded model. Every coroutine may be awaited from any event loop, many at a time.

    Those that compute raise WrongTask, Invalid, Empty, Untokenizable, TooLarge, Overloaded, NotReady, Expired or
    EngineFailed. `route` is the path that the model's default route answers as.
    """

    checkpoint: Checkpoint
    engine: Engine | RemoteEngine
    scheduler: Scheduler | RemoteScheduler | None = None
    route: str

    def __init__(self, settings: Settings, isolated: bool = False):
        """`isolated`: the engine runs in a process of its own, and the service outlives it."""
        self.settings = settings
        self.state: State = "loading"
        self._isolated: IsolatedEngine | None = IsolatedEngine(settings) if isolated else None
        self._running = 0
        self.in_flight = InFlight(max(settings.payload_limit, settings.max_bytes_in_flight))

    def load(self) -> None:
        """Fetch, read, build, warm up; then ready. Blocking. Raises SetupError."""
        if self.settings.without_effect:
            log.warning("trt_llm: without effect here: %s", ", ".join(self.settings.without_effect))
        try:
            with refusing():
                with _step(f"checkpoint {self.settings.public_repo}"):
                    checkpoint = sources.load(self.settings)
                with _step("engine"):
                    isolated = self._isolated
                    engine = isolated.load(checkpoint) if isolated else engines.create(self.settings, checkpoint)
                self.start(checkpoint, engine)
        except BaseException:
            self.state = "failed"
            raise

    def start(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Serve a checkpoint on an engine: the second half of `load`."""
        settings = self.settings
        limits = Limits(
            min(settings.max_num_tokens, engine.token_budget),
            settings.max_batch_size,
            settings.max_queue_tokens,
            settings.max_queue_texts,
            settings.max_concurrent_requests,
            engine.has_brief_lane,
        )
        keep = partial(sparse.terms, most=checkpoint.max_terms) if checkpoint.task == "sparse" else np.asarray
        scheduler = Scheduler(engine, Queue(limits), keep=keep, max_seconds=settings.max_queue_seconds)
        self.join(checkpoint, engine, scheduler)

    def join(
        self,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        before_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve a checkpoint on a scheduler that may be another process's; `before_ready` is waited for."""
        memory.give_back_large_blocks()
        settings = self.settings
        self.checkpoint, self.engine = checkpoint, engine
        self.route = _route(settings, checkpoint)
        self._tokenizer = Tokenizer(checkpoint, _default_prompt(settings, checkpoint))
        self.tokenization_workers = settings.tokenization_workers or available_cpus()
        self._tokenizing = ThreadPoolExecutor(self.tokenization_workers, "tokenizer")
        self._tokenizing_bulk = ThreadPoolExecutor(self.tokenization_workers, "tokenizer-bulk")
        self._kind: RowKind = "tokens" if checkpoint.task in ("entities", "multi_vector") else "pooled"
        self.scheduler = scheduler
        with _step("warm-up"):
            asyncio.run(self._probe())
        before_ready()
        if self.state == "loading":  # else it was told to stop meanwhile
            self.state = "ready"
            metrics.ready.set(1)
        facts = (engine.name, engine.device, engine.precision, engine.streams)
        metrics.observe_engine(settings.served_model_name, *facts)

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        options: Options = Options(),
    ) -> Answer:
        """One vector a text: float32[N, dimensions], those of the model itself unless some are asked for."""
        self._require("Model is not an embedding model", "embedding")
        vectors.check(dimensions, self.checkpoint.spec.row_size)
        rows, usage = await self._rows(inputs, options, answered=_JSON)
        dimensions = dimensions or self.checkpoint.dimensions
        return Answer(vectors.finish(np.array(rows), dimensions=dimensions, normalize=normalize), usage)

    async def embed_tokens(self, inputs: Sequence[Input], *, options: Options = Options()) -> Answer:
        """A list of float32[tokens, D]: the last hidden state of every token, specials included; of a ColBERT model the
        vectors that are compared, of documents unless the prompt is `query`; BGE-M3's multi-vectors."""
        if self._is("sparse"):
            raise WrongTask("`embed_all` is not available for SPLADE models; POST /embed_sparse")
        self._require("Model is not an embedding model", "embedding", "multi_vector")
        if self._is("embedding"):
            rows, usage = await self._rows(inputs, options, "tokens", answered=_JSON)
            if self.checkpoint.m3 is not None:
                rows = await self._off_loop(lambda: [m3.token_vectors(row, self.checkpoint.m3) for row in rows])
            return Answer(rows, usage)
        role: Role = "query" if options.prompt_name == "query" else "document"
        read = partial(self._read, inputs, options, role)
        encodings, rows, usage = await self._run(inputs, read, options, answered=_JSON)
        return Answer([row[encoding.scored] for encoding, row in zip(encodings, rows, strict=True)], usage)

    async def embed_sparse(self, inputs: Sequence[Input], *, options: Options = Options()) -> Answer:
        """One sparse vector a text: a list of Terms."""
        self._check_ready()
        if self.checkpoint.m3 is None:
            self._require("Model is not an embedding model with SPLADE pooling", "sparse")
            return self._sparse_answer(*await self._rows(inputs, options))
        encodings, rows, usage = await self._run(inputs, partial(self._read, inputs, options), options, "tokens")

        def weigh() -> list[sparse.Terms]:
            heads, unused = self.checkpoint.m3, self._tokenizer.unused
            pairs = zip(encodings, rows, strict=True)
            return [m3.terms(states, encoding.ids, heads, unused) for encoding, states in pairs]

        return self._sparse_answer(await self._off_loop(weigh), usage)

    def _sparse_answer(self, rows: list[sparse.Terms], usage: Usage) -> Answer:
        """Of an answer whose size nobody knows before."""
        self.in_flight.admit(_TERM * sum(len(terms.indices) for terms in rows))
        return Answer(rows, usage)

    async def similarity(self, source: str, sentences: Sequence[str], *, options: Options = Options()) -> Answer:
        """The cosine of the source to each sentence: float32[N]."""
        self._require("Model is not an embedding model", "embedding")
        rows, usage = await self._rows([source, *sentences], options)
        found = np.array(rows)[:, : self.checkpoint.dimensions]
        return Answer(vectors.similarities(found[0], found[1:]), usage)

    async def rerank(
        self, query: str, texts: Sequence[str], *, scoring: Scoring | None = None, options: Options = Options()
    ) -> Answer:
        """How well each text answers the query: float32[N], of a cross-encoder or ColBERT's MaxSim."""
        self._require("model is not a re-ranker model", "reranker", "multi_vector")
        return await self.score([(query, text) for text in texts], scoring=scoring, options=options)

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, scoring: Scoring | None = None, options: Options = Options()
    ) -> Answer:
        """float32[N]: a cross-encoder's score of each pair, ColBERT's MaxSim, or the cosine of an embedding model.
        `scoring` makes a cross-encoder's scores of its logits in another way than its own."""
        self._require("Model scores no pairs", "reranker", "multi_vector", "embedding")
        if self._is("reranker"):
            rows, usage = await self._rows(pairs, options)
            logits = np.array(rows)
            found = scores.activate(logits, scoring or self.checkpoint.scoring)[:, 0]
            return Answer(found, usage, scores.best_first(logits[:, 0]))
        if self._is("multi_vector"):
            return await self._maxsim(pairs, options)
        *sides, usage = await self._sides(pairs, options)
        first, second = (dict(zip(side, self._units(side), strict=True)) for side in sides)
        cosines = np.array([first[a] @ second[b] for a, b in pairs], np.float32)
        return Answer(cosines, usage, scores.best_first(cosines))

    async def classify(
        self, inputs: Sequence[Input], *, scoring: Scoring | None = None, options: Options = Options()
    ) -> Answer:
        """The scores of every label for each text or pair: float32[N, labels]."""
        self._require("Model is not a classifier model", "classifier", "reranker")
        rows, usage = await self._rows(inputs, options, answered=_LABEL)
        logits = np.array(rows)
        found = scores.activate(logits, scoring or self.checkpoint.scoring)
        return Answer(found, usage, scores.best_first(logits))

    async def entities(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy = "none",
        raw_scores: bool = False,
        ignore_labels: Sequence[str] = ("O",),
        options: Options = Options(),
    ) -> Answer:
        """A list of Entity for each text; texts of any length are read in windows unless `truncate` is false."""
        self._require("Model is not a token classification model", "entities")
        tokenizer, labels = self._tokenizer, self.checkpoint.labels
        answered = _LABEL if raw_scores else _ENTITY / len(labels)

        def check(tokens: int) -> None:
            self.in_flight.check(int(tokens * self.checkpoint.spec.token_size * (_FLOAT + answered)))

        read = _naming(texts, partial(tokenizer.windows, texts, truncate=options.truncate is not False, check=check))
        windows, rows, usage = await self._run(texts, read, options, answered=answered)

        def find() -> list[list[entities.Entity]]:
            logits = np.concatenate(rows)
            if strategy == "none":
                known = (tokenizer.vocabulary, tokenizer.unknown)
                return entities.tokens(texts, windows, logits, labels, *known, raw_scores=raw_scores)
            return entities.aggregate(texts, windows, logits, labels, strategy, ignore_labels, raw_scores=raw_scores)

        return Answer(await self._off_loop(find), usage)

    def prompts(self) -> Mapping[str, str]:
        """The model's prompts by name."""
        self._check_ready()
        return self.checkpoint.prompts.texts

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[list[Token]]:
        self._check_ready()
        self._check_size(texts)
        prompt = self._tokenizer.prompt(prompt_name)
        self.in_flight.admit(_CHARACTER * _size(texts))
        with self._admission():
            return await self._off_loop(
                lambda: self._tokenizer.tokenize(texts, add_special_tokens=add_special_tokens, prompt=prompt), of=texts
            )

    async def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        self._check_ready()
        self._check_size(ids)
        with self._admission():
            read = _naming(ids, partial(self._tokenizer.decode, ids, skip_special_tokens=skip_special_tokens))
            return await self._off_loop(read, of=ids)

    async def check(self) -> None:
        """Raises NotReady unless requests are answered and the engine finished a real forward in the last 30 s;
        runs one where it has not."""
        self._check_ready()
        idle = time.monotonic() - self.scheduler.last_success
        if self.scheduler.failing or idle > _PROBE_AFTER:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    await self._probe()
            except (Error, TimeoutError) as exc:
                raise NotReady(f"the engine does not answer: {one_line(exc)}") from None

    def on_fault(self, told: Callable[[], None]) -> None:
        """Have `told` called when the engine's `fault` changes."""
        if self._isolated is not None:
            self._isolated.on_fault = told

    def drain(self) -> None:
        """Admit no more; what is queued goes on, the oldest first."""
        self.state = "draining"
        if self.scheduler is not None:
            self.scheduler.drain()
        metrics.ready.set(0)

    def close(self) -> None:
        """Drain, wait for what is queued, and stop the threads."""
        self.drain()
        if self.scheduler is not None:
            self.scheduler.close()
            for pool in (self._tokenizing, self._tokenizing_bulk):
                pool.shutdown(wait=False)
        if self._isolated is not None:
            self._isolated.close()

    async def _sides(self, pairs: Sequence[tuple[str, str]], options: Options) -> tuple[_Side, _Side, Usage]:
        """The first texts of the pairs, and the second ones, each read once."""
        sides: dict[Role, list[str]] = {
            "query": list(dict.fromkeys(first for first, _ in pairs)),
            "document": list(dict.fromkeys(second for _, second in pairs)),
        }
        late = self._is("multi_vector")
        if late and options.prompt_name is not None:
            raise Invalid("`prompt_name`: a ColBERT model has its own for either side of a pair", param="prompt_name")

        def read() -> list[Encoding]:
            queries = self._read(sides["query"], options, "query" if late else None)
            return queries + self._read(sides["document"], self._of_documents(options), "document" if late else None)

        encodings, rows, usage = await self._run(pairs, read, options)
        found = zip(encodings, rows, strict=True)
        first, second = ({text: next(found) for text in texts} for texts in sides.values())
        return first, second, usage

    def _units(self, side: _Side) -> np.ndarray:
        """The embeddings of one side, of length 1: float32[texts, dimensions]."""
        return vectors.unit(np.array([row for _, row in side.values()])[:, : self.checkpoint.dimensions])

    def _of_documents(self, options: Options) -> Options:
        """How documents are read that are not the second text of a pair."""
        if options.max_document_tokens is None:
            return options
        tokenizer = self._narrowed(options)
        late = self.checkpoint.task == "multi_vector"
        prompt = tokenizer.role_prompt("document") if late else self._prompt(options)
        most = options.max_document_tokens + tokenizer.around(prompt)
        return replace(options, truncate=True, max_tokens=min(most, options.max_tokens or most))

    async def _maxsim(self, pairs: Sequence[tuple[str, str]], options: Options) -> Answer:
        *sides, usage = await self._sides(pairs, options)

        def compare() -> np.ndarray:
            queries, documents = (
                {text: row[encoding.scored] for text, (encoding, row) in side.items()} for side in sides
            )
            mean = self.checkpoint.late_interaction.mean
            return np.array(
                [late_interaction.maxsim(queries[q], documents[d], mean=mean) for q, d in pairs], np.float32
            )

        found = await self._off_loop(compare)
        return Answer(found, usage, scores.best_first(found))

    async def _rows(
        self, inputs: Sequence[Input], options: Options, kind: RowKind | None = None, answered: float = 0
    ) -> tuple[list[Any], Usage]:
        """What is kept of each input's row."""
        return (await self._run(inputs, partial(self._read, inputs, options), options, kind, answered))[1:]

    def _read(self, inputs: Sequence[Input], options: Options, role: Role | None = None) -> list[Encoding]:
        pairs = any(isinstance(item, tuple) for item in inputs)
        if options.prompt_name is not None and pairs and not self.checkpoint.prompts.before_pairs:
            raise Invalid("`prompt_name` cannot be set with dual inputs", param="prompt_name")
        if options.instruction is not None:
            self._check_instruction(options, pairs, role)
        tokenizer = self._narrowed(options)
        prompt = tokenizer.role_prompt(role) if role and not options.prompt_name else self._prompt(options)
        templated = self.checkpoint.pair_template is not None
        read = partial(
            tokenizer.encode,
            inputs,
            truncate=self.settings.auto_truncate if options.truncate is None else options.truncate,
            direction=options.truncation_direction or self.checkpoint.truncation_side,
            prompt=None if templated else prompt,
            instruction=prompt if templated else None,
            role=role,
            max_second_tokens=options.max_document_tokens,
        )
        return _naming(inputs, read)()

    def _narrowed(self, options: Options) -> Tokenizer:
        if options.max_tokens is None and options.add_special_tokens:
            return self._tokenizer
        return self._tokenizer.narrowed(options.max_tokens, options.add_special_tokens)

    def _prompt(self, options: Options) -> str | None:
        return self._tokenizer.prompt(options.prompt_name) if options.instruction is None else options.instruction

    def _check_instruction(self, options: Options, pairs: bool, role: Role | None) -> None:
        if role is not None:
            raise Invalid("`instruction`: a ColBERT model takes none", param="instruction")
        if options.prompt_name is not None:
            raise Invalid("`instruction` cannot be set with `prompt_name`; send one of them", param="instruction")
        if pairs and not (self.checkpoint.pair_template and self.checkpoint.pair_template.takes_instruction):
            raise Invalid("`instruction`: this model takes none with a pair", param="instruction")
        if not pairs and self.checkpoint.pair_template is not None:
            raise Invalid("`instruction` is for pairs; a text alone is read as it is", param="instruction")

    async def _run(
        self,
        inputs: Sequence[object],
        read: Callable[[], E],
        options: Options,
        kind: RowKind | None = None,
        answered: float = 0,
    ) -> tuple[E, list[Any], Usage]:
        """The whole way of a request: `read` its texts (off the loop but for a brief one), queue, wait for the rows;
        `answered` bytes of the answer are made of each of their numbers."""
        started = time.monotonic()
        self._check_size(inputs)
        kind = kind or self._kind
        with self._admission():
            encodings = read() if _is_brief(inputs, options) else await self._read_in_time(inputs, read, options)
            tokenized = time.monotonic()
            self.in_flight.admit(int(self._numbers(encodings, kind) * (_FLOAT + answered)))
            pending = _Pending(len(encodings), options.deadline)
            rows = await self._submit(pending, encodings, kind)
        for encoding in encodings:
            metrics.input_length.observe(len(encoding.ids))
        return encodings, rows, _usage(encodings, pending, started, tokenized)

    def _repeated(self, inputs: Sequence[object], options: Options) -> int:
        """Characters that are written anew for each text or pair before they are read."""
        templated = self.checkpoint.pair_template is not None
        queries = sum(len(item[0]) for item in inputs if isinstance(item, tuple)) if templated else 0
        return queries + len(options.instruction or "") * len(inputs)

    def _numbers(self, encodings: Collection[Encoding], kind: RowKind) -> int:
        """Of all rows that are kept; those of SPLADE are kept as terms."""
        spec = self.checkpoint.spec
        if kind == "tokens":
            return spec.token_size * sum(len(encoding.ids) for encoding in encodings)
        return 0 if self.checkpoint.task == "sparse" else spec.row_size * len(encodings)

    async def _read_in_time(self, inputs: Sequence[object], read: Callable[[], E], options: Options) -> E:
        seconds = None if options.deadline == float("inf") else options.deadline - time.monotonic()
        self.in_flight.admit(self._repeated(inputs, options))
        try:
            async with asyncio.timeout(seconds):
                return await self._off_loop(read, of=inputs)
        except TimeoutError:
            raise Expired("the request's deadline passed while its texts were read") from None

    async def _submit(self, pending: _Pending, encodings: Collection[Encoding], kind: RowKind) -> list[Any]:
        """What is kept of each row."""
        shared = 0
        if self.engine.shares_prefixes and kind == "pooled" and len(encodings) > 1:
            shared = worth_sharing([encoding.ids for encoding in encodings])
        entries = [
            Entry(pending, i, e.ids, e.types, e.prompt_tokens, e.attended, kind, shared)
            for i, e in enumerate(encodings)
        ]
        self.scheduler.submit(entries)
        try:
            return await pending.wait()
        finally:
            self.scheduler.drop(pending)  # the client may have left; what has not run need not

    async def _probe(self) -> None:
        """One token through the whole path."""
        await self._submit(_Pending(1, float("inf")), self._tokenizer.encode(["a"], truncate=True), self._kind)

    async def _off_loop(self, work: Callable[[], R], *, of: Sequence[object] = ()) -> R:
        """`of`: the inputs that it reads. Large ones have threads of their own: no other request waits behind them."""
        return await off_loop(self._tokenizing_bulk if _size(of) > _BULK else self._tokenizing, work)

    @contextmanager
    def _admission(self) -> Iterator[None]:
        if self._running >= self.settings.max_concurrent_requests:
            raise Overloaded(retry_after=self.scheduler.drains_in())
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def check_loaded(self) -> None:
        """Raises NotReady before there is a checkpoint and an engine."""
        if self.state in ("loading", "failed"):
            raise NotReady(f"the model is {self.state}")

    def _check_ready(self) -> None:
        if self.state != "ready":
            raise NotReady(f"the model is {self.state}" if self.state != "failed" else "the model failed to load")
        if self.engine.fault is not None:
            raise NotReady(self.engine.fault)

    def _is(self, task: Task) -> bool:
        self._check_ready()
        return self.checkpoint.task == task

    def _require(self, refusal: str, *tasks: Task) -> None:
        """Raises WrongTask, in TEI's words and with the route that fits, unless the model is for one of `tasks`."""
        self._check_ready()
        if self.checkpoint.task not in tasks:
            raise WrongTask(f"{refusal}; its task is {self.checkpoint.task}: POST {self.route}")

    def _check_size(self, inputs: Sequence[object]) -> None:
        if not inputs:
            raise Empty("`inputs` cannot be empty", param="inputs")
        limit = self.settings.max_client_batch_size
        if len(inputs) > limit:
            raise TooLarge(f"batch size {len(inputs)} > maximum allowed batch size {limit}")


def _naming(inputs: Sequence[object], read: Callable[[], R]) -> Callable[[], R]:
    """`read`, whose errors know the input that they are about."""

    def reading() -> R:
        try:
            return read()
        except Error as error:
            error.item = None if error.place is None else inputs[error.place]
            raise

    return reading


def _is_brief(inputs: Sequence[object], options: Options) -> bool:
    """One text that is tokenized in less time than a thread takes to be asked."""
    size = len(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], str) else _BRIEF + 1
    return size + len(options.instruction or "") <= _BRIEF


def _size(inputs: Sequence[Any]) -> int:
    """Characters and token ids of texts, pairs and lists of ids."""
    return sum(sum(map(len, item)) if isinstance(item, tuple) else len(item) for item in inputs)


def _route(settings: Settings, checkpoint: Checkpoint) -> str:
    """The settings' default route, or the task's. Raises SetupError for one that does not fit the model."""
    fitting = ROUTES[checkpoint.task]
    if settings.route is None:
        return fitting[0]
    if settings.route not in fitting:
        allowed = [route for route in fitting if route in get_args(DefaultRoute)]
        remedy = f"set {' or '.join(allowed)}" if allowed else f"leave it out for {fitting[0]}"
        raise SetupError(
            f"runtime.webserver_default_route: {settings.route} does not fit {checkpoint.name}, whose task is "
            f"{checkpoint.task}; {remedy}"
        )
    return settings.route


def _default_prompt(settings: Settings, checkpoint: Checkpoint) -> str | None:
    """The settings' prompt, or the named one, or the model's own. Raises SetupError for a name that the model lacks."""
    if settings.default_prompt is not None:
        return settings.default_prompt
    prompts = checkpoint.prompts
    name = settings.default_prompt_name or prompts.default
    if name is not None and name not in prompts.texts:
        known = ", ".join(sorted(prompts.texts)) or "none"
        raise SetupError(f"default_prompt_name {short(name)} is not one of the model's prompts: {known}")
    return None if name is None else prompts.texts[name]


def _usage(encodings: Collection[Encoding], pending: _Pending, started: float, tokenized: float) -> Usage:
    return Usage(
        characters=sum(encoding.characters for encoding in encodings),
        tokens=sum(len(encoding.ids) for encoding in encodings),
        tokenization=tokenized - started,
        queue=pending.queue / len(encodings),
        inference=pending.inference / len(encodings),
        total=time.monotonic() - started,
    )


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    log.info("%s ...", name)
    yield
    log.info("%s: %.1f s", name, time.monotonic() - started)
