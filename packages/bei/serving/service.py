"""The tasks of one model behind an async interface: check, tokenize, queue, finish. Every host uses it."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from bei import logs, memory
from bei.batching import Limits, Queue, RowKind
from bei.checkpoint import sources
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Scoring, Task
from bei.engines import choice
from bei.engines.base import Engine
from bei.engines.isolated import IsolatedEngine
from bei.errors import Error, Invalid, NotReady, WrongTask, one_line, refusing
from bei.inflight import InFlight
from bei.metrics import Metrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import Scheduler
from bei.serving.answers import DEFAULTS, Answer, Options, Ranked, Usage
from bei.serving.pipeline import FLOAT, Pipeline
from bei.serving.routes import default_route
from bei.serving.texts import TextReader, naming, size
from bei.settings import Settings
from bei.tasks import entities, late_interaction, m3, scores, sparse, vectors
from bei.tasks.entities import Strategy
from bei.tokenizer import Encoding, Input, Role, TextTokens
from bei.tracing import Tracer

log = logging.getLogger("bei")

_Side = dict[str, tuple[Encoding, Any]]  # text → its encoding and its row
State = Literal["loading", "ready", "failed", "draining"]
_PROBE_AFTER = 30.0  # seconds without a finished batch after which a health check runs one
_PROBE_TIMEOUT = 30.0
_JSON = 12  # bytes of a number in an answer
_LABEL, _TERM, _ENTITY = 240, 50, 520  # approximate bytes of one in an answer, its intermediate objects included
_DECODED, _PIECE = 4, 64  # bytes of a decoded character, and of each intermediate token
_CHARACTER = 100  # bytes of an answer per character: a token is 400 bytes


class Service:
    """One loaded model. Every coroutine may be awaited from any event loop, many at a time.

    Methods that run the model raise WrongTask, Invalid, Empty, Untokenizable, TooLarge, Overloaded, NotReady, Expired
    or EngineFailed. `route` is the path of the model's default route.
    """

    checkpoint: Checkpoint
    engine: Engine | RemoteEngine
    scheduler: Scheduler | RemoteScheduler | None = None
    route: str
    has_labels = False  # whether the model scores, classifies or tags; false until it is loaded

    def __init__(
        self, settings: Settings, metrics: Metrics | None = None, tracer: Tracer | None = None, isolated: bool = False
    ):
        """`metrics` and `tracer` are the server's. Without them the service has metrics of its own, and traces nothing.
        `isolated` runs the engine in a process of its own, whose crash the service survives."""
        self.settings = settings
        self.metrics, self.tracer = metrics or Metrics(), tracer
        self.model_metrics = self.metrics.of_model(settings.served_model_name)
        self.state: State = "loading"
        self._isolated = IsolatedEngine(settings, self.model_metrics) if isolated else None
        self.in_flight = InFlight(
            max(settings.payload_limit, settings.max_bytes_in_flight), on_calm=memory.Trimmer().soon
        )

    def load(self) -> None:
        """Fetches and reads the checkpoint, makes the engine, and runs one batch; then the service is ready. Blocking.
        Raises SetupError."""
        if self.settings.without_effect:
            log.warning("trt_llm: without effect here: %s", ", ".join(self.settings.without_effect))
        try:
            with refusing():
                with logs.step(f"checkpoint {self.settings.public_repo}"):
                    checkpoint = sources.load(self.settings)
                with logs.step("engine"):
                    isolated = self._isolated
                    engine = isolated.load(checkpoint) if isolated else choice.create(self.settings, checkpoint)
                self.start(checkpoint, engine)
        except BaseException:
            self.state = "failed"
            raise

    def start(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Serves a checkpoint on an engine: the second half of `load`."""
        settings = self.settings
        limits = Limits(
            batch_tokens=min(settings.max_num_tokens, engine.facts.token_budget),
            batch_size=settings.max_batch_size,
            tokens=settings.max_queue_tokens,
            size=settings.max_queue_texts,
            requests=settings.max_concurrent_requests,
            brief_apart=engine.facts.has_brief_slot,
        )
        keep = partial(sparse.terms, most=checkpoint.max_terms) if checkpoint.task == "sparse" else np.asarray
        scheduler = Scheduler(
            engine, Queue(limits), keep=keep, max_seconds=settings.max_queue_seconds, metrics=self.model_metrics
        )
        self.join(checkpoint, engine, scheduler)

    def join(
        self,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        before_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Serves a checkpoint on a scheduler, which may be in another process. Calls `before_ready` before it is
        ready."""
        memory.give_back_large_blocks()
        settings = self.settings
        self.checkpoint, self.engine = checkpoint, engine
        self.has_labels = bool(checkpoint.labels)
        self.route = default_route(settings, checkpoint)
        self._texts = TextReader(settings, checkpoint)
        self._pipeline = Pipeline(
            settings, checkpoint, engine, scheduler, self._texts, self.in_flight, self.model_metrics
        )
        self.tokenization_workers = self._pipeline.workers
        self.scheduler = scheduler
        with logs.step("warm-up"):
            asyncio.run(self._pipeline.probe())
        before_ready()
        if self.state == "loading":  # otherwise it was stopped meanwhile
            self.state = "ready"
            self.model_metrics.set_ready(True)
        facts = engine.facts
        self.model_metrics.observe_engine(facts.name, facts.device, facts.precision, facts.streams)

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        options: Options = DEFAULTS,
    ) -> Answer:
        """One vector per text: float32[N, dimensions]. Without `dimensions`, the model's own number of them."""
        self._require("Model is not an embedding model", "embedding")
        vectors.check(dimensions, self.checkpoint.spec.row_size)
        rows, usage = await self._rows(inputs, options, answered=_JSON)
        dimensions = dimensions or self.checkpoint.dimensions
        return Answer(vectors.finish(np.array(rows), dimensions=dimensions, normalize=normalize), usage)

    async def embed_tokens(self, inputs: Sequence[Input], *, options: Options = DEFAULTS) -> Answer:
        """A list of float32[tokens, D], one per text: the last hidden state of every token, special tokens included.
        For a ColBERT model, the vectors that are compared, of documents unless the prompt is `query`. For BGE-M3, its
        multi-vectors."""
        if self._is("sparse"):
            raise WrongTask("`embed_all` is not available for SPLADE models; POST /embed_sparse")
        self._require("Model is not an embedding model", "embedding", "multi_vector")
        if self._is("embedding"):
            rows, usage = await self._rows(inputs, options, "tokens", answered=_JSON)
            heads = self.checkpoint.m3
            if heads is not None:
                rows = await self._pipeline.off_loop(lambda: [m3.token_vectors(row, heads) for row in rows])
            return Answer(rows, usage)
        role: Role = "query" if options.prompt_name == "query" else "document"
        read = partial(self._texts.read, inputs, options, role)
        encodings, rows, usage = await self._pipeline.run(inputs, read, options, answered=_JSON)
        return Answer([row[encoding.scored] for encoding, row in zip(encodings, rows, strict=True)], usage)

    async def embed_sparse(self, inputs: Sequence[Input], *, options: Options = DEFAULTS) -> Answer:
        """One sparse vector per text: a list of Terms."""
        self._check_ready()
        heads = self.checkpoint.m3
        if heads is None:
            self._require("Model is not an embedding model with SPLADE pooling", "sparse")
            return self._sparse_answer(*await self._rows(inputs, options))
        encodings, rows, usage = await self._pipeline.run(
            inputs, partial(self._texts.read, inputs, options), options, "tokens"
        )

        def weigh() -> list[sparse.Terms]:
            unused = self._texts.tokenizer.unused
            pairs = zip(encodings, rows, strict=True)
            return [m3.terms(states, encoding.ids, heads, unused) for encoding, states in pairs]

        return self._sparse_answer(await self._pipeline.off_loop(weigh), usage)

    def _sparse_answer(self, rows: list[sparse.Terms], usage: Usage) -> Answer:
        """An answer whose size is unknown before it is made."""
        self.in_flight.admit(_TERM * sum(len(terms.indices) for terms in rows))
        return Answer(rows, usage)

    async def similarity(self, source: str, sentences: Sequence[str], *, options: Options = DEFAULTS) -> Answer:
        """The cosine of the source to each sentence: float32[N]."""
        self._require("Model is not an embedding model", "embedding")
        rows, usage = await self._rows([source, *sentences], options)
        found = np.array(rows)[:, : self.checkpoint.dimensions]
        return Answer(vectors.similarities(found[0], found[1:]), usage)

    async def rerank(
        self, query: str, texts: Sequence[str], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Ranked:
        """The relevance of each text to the query: float32[N], a cross-encoder's score or ColBERT's MaxSim."""
        self._require("model is not a re-ranker model", "reranker", "multi_vector")
        return await self.score([(query, text) for text in texts], scoring=scoring, options=options)

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Ranked:
        """float32[N]: a cross-encoder's score of each pair, ColBERT's MaxSim, or the cosine of an embedding model.
        `scoring` replaces the cross-encoder's own function from logits to scores."""
        self._require("Model scores no pairs", "reranker", "multi_vector", "embedding")
        if self._is("reranker"):
            rows, usage = await self._rows(pairs, options)
            logits = np.array(rows)
            found = scores.activate(logits, scoring or self.checkpoint.scoring)[:, 0]
            return Ranked(found, usage, scores.best_first(logits[:, 0]))
        if self._is("multi_vector"):
            return await self._maxsim(pairs, options)
        *sides, usage = await self._sides(pairs, options)
        first, second = (dict(zip(side, self._units(side), strict=True)) for side in sides)
        cosines = np.array([first[a] @ second[b] for a, b in pairs], np.float32)
        return Ranked(cosines, usage, scores.best_first(cosines))

    async def classify(
        self, inputs: Sequence[Input], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Ranked:
        """The scores of every label for each text or pair: float32[N, labels]."""
        self._require("Model is not a classifier model", "classifier", "reranker")
        rows, usage = await self._rows(inputs, options, answered=_LABEL + self._longest_label())
        logits = np.array(rows)
        found = scores.activate(logits, scoring or self.checkpoint.scoring)
        return Ranked(found, usage, scores.best_first(logits))

    async def entities(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy = "none",
        raw_scores: bool = False,
        ignore_labels: Sequence[str] = ("O",),
        options: Options = DEFAULTS,
    ) -> Answer:
        """A list of Entity for each text. Texts of any length are read in windows, unless `truncate` is false."""
        self._require("Model is not a token classification model", "entities")
        tokenizer, labels = self._texts.tokenizer, self.checkpoint.labels
        longest = self._longest_label()
        answered = _LABEL + longest if raw_scores else (_ENTITY + longest) / len(labels)

        def check(tokens: int) -> None:
            self.in_flight.check(int(tokens * self.checkpoint.spec.token_size * (FLOAT + answered)))

        read = naming(texts, partial(tokenizer.windows, texts, truncate=options.truncate is not False, check=check))
        windows, rows, usage = await self._pipeline.run(texts, read, options, answered=answered)

        def find() -> list[list[entities.Entity]]:
            logits = np.concatenate(rows)
            if strategy == "none":
                known = (tokenizer.vocabulary, tokenizer.unknown)
                return entities.tokens(texts, windows, logits, labels, *known, raw_scores=raw_scores)
            return entities.aggregate(texts, windows, logits, labels, strategy, ignore_labels, raw_scores=raw_scores)

        return Answer(await self._pipeline.off_loop(find), usage)

    def _longest_label(self) -> int:
        """In bytes."""
        return max((len(label.encode(errors="replace")) for label in self.checkpoint.labels), default=0)

    def prompts(self) -> Mapping[str, str]:
        """The model's prompts by name."""
        self._check_ready()
        return self.checkpoint.prompts.texts

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[TextTokens]:
        self._check_ready()
        self._pipeline.check_size(texts)
        tokenizer = self._texts.tokenizer
        prompt = tokenizer.prompt(prompt_name)
        added = tokenizer.added(prompt, specials=add_special_tokens)
        self.in_flight.admit(_CHARACTER * (size(texts) + added * len(texts)))
        with self._pipeline.admission():
            return await self._pipeline.off_loop(
                lambda: self._texts.tokenizer.tokenize(texts, add_special_tokens=add_special_tokens, prompt=prompt),
                of=texts,
            )

    async def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        self._check_ready()
        self._pipeline.check_size(ids)
        tokenizer = self._texts.tokenizer
        with self._pipeline.admission():
            size = await self._pipeline.off_loop(naming(ids, partial(tokenizer.decoded, ids)), of=ids)
            self.in_flight.admit(_DECODED * size + _PIECE * sum(map(len, ids)))
            read = partial(tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)
            return await self._pipeline.off_loop(read, of=ids)

    async def check(self) -> None:
        """Raises NotReady unless requests are answered and a batch ended in the last 30 s; without one it runs one."""
        self._check_ready()
        scheduler = self._pipeline.scheduler
        idle = time.monotonic() - scheduler.last_success
        if scheduler.failing or idle > _PROBE_AFTER:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    await self._pipeline.probe()
            except (Error, TimeoutError) as exc:
                raise NotReady(f"the engine does not answer: {one_line(exc)}") from None

    def on_fault(self, told: Callable[[], None]) -> None:
        """Has `told` called when the engine's `fault` changes."""
        if self._isolated is not None:
            self._isolated.on_fault = told

    def drain(self) -> None:
        """Admits no more requests; queued ones continue, oldest first."""
        self.state = "draining"
        if self.scheduler is not None:
            self.scheduler.drain()
        self.model_metrics.set_ready(False)

    def close(self) -> None:
        """Drains, waits for queued requests, and stops the threads."""
        self.drain()
        if self.scheduler is not None:
            self.scheduler.close()
            self._pipeline.close()
        if self._isolated is not None:
            self._isolated.close()

    async def _sides(self, pairs: Sequence[tuple[str, str]], options: Options) -> tuple[_Side, _Side, Usage]:
        """The first texts of the pairs and the second ones, each read once."""
        sides: dict[Role, list[str]] = {
            "query": list(dict.fromkeys(first for first, _ in pairs)),
            "document": list(dict.fromkeys(second for _, second in pairs)),
        }
        late = self._is("multi_vector")
        if late and options.prompt_name is not None:
            raise Invalid("`prompt_name`: a ColBERT model has its own for either side of a pair", param="prompt_name")

        def read() -> list[Encoding]:
            queries = self._texts.read(sides["query"], options, "query" if late else None)
            return queries + self._texts.read(
                sides["document"], self._texts.of_documents(options), "document" if late else None
            )

        encodings, rows, usage = await self._pipeline.run(pairs, read, options)
        found = zip(encodings, rows, strict=True)
        first, second = ({text: next(found) for text in texts} for texts in sides.values())
        return first, second, usage

    def _units(self, side: _Side) -> np.ndarray:
        """The embeddings of one side, of length 1: float32[texts, dimensions]."""
        return vectors.unit(np.array([row for _, row in side.values()])[:, : self.checkpoint.dimensions])

    async def _maxsim(self, pairs: Sequence[tuple[str, str]], options: Options) -> Ranked:
        *sides, usage = await self._sides(pairs, options)

        def compare() -> np.ndarray:
            queries, documents = (
                {text: row[encoding.scored] for text, (encoding, row) in side.items()} for side in sides
            )
            late = self.checkpoint.late_interaction
            mean = late is not None and late.mean
            return np.array(
                [late_interaction.maxsim(queries[q], documents[d], mean=mean) for q, d in pairs], np.float32
            )

        found = await self._pipeline.off_loop(compare)
        return Ranked(found, usage, scores.best_first(found))

    async def _rows(
        self, inputs: Sequence[Input], options: Options, kind: RowKind | None = None, answered: float = 0
    ) -> tuple[list[Any], Usage]:
        """The kept value of each input's row."""
        return (await self._pipeline.run(inputs, partial(self._texts.read, inputs, options), options, kind, answered))[
            1:
        ]

    def check_loaded(self) -> None:
        """Raises NotReady until there is a checkpoint and an engine."""
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
        """Raises WrongTask, in TEI's words and with the route that fits, unless the model's task is one of `tasks`."""
        self._check_ready()
        if self.checkpoint.task not in tasks:
            raise WrongTask(f"{refusal}; its task is {self.checkpoint.task}: POST {self.route}")
