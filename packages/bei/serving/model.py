"""The tasks of one model behind an async interface: check, tokenize, queue, finish. Every host uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bei.batching import RowKind
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.lookup import Lookup
from bei.checkpoint.task import Scoring, Task
from bei.checkpoint.texts import Prompts
from bei.engines.base import Engine
from bei.errors import Empty, Invalid, WrongTask, short
from bei.inflight import InFlight
from bei.metrics import ModelMetrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import Scheduler
from bei.serving import abilities
from bei.serving.abilities import Ability
from bei.serving.answers import DEFAULTS, Answer, Options, Ranked, Usage
from bei.serving.list_ranker import ListRanker
from bei.serving.pipeline import FLOAT, Pipeline
from bei.serving.readiness import Readiness
from bei.serving.span_finder import ENTITY, SpanFinder, longest
from bei.serving.texts import TextReader, naming, size
from bei.settings import Settings
from bei.tasks import entities, late_interaction, m3, precision, scores, sparse, vectors
from bei.tasks.entities import Strategy
from bei.tasks.named_entities import Wanted
from bei.tokenizer import Encoding, Input, Role, TextTokens

_Side = dict[str, Any]  # text → its row
_JSON = 12  # bytes of a number in an answer
_LABEL, _TERM = 240, 50  # approximate bytes of one in an answer, its intermediate objects included
_DECODED, _PIECE = 4, 64  # bytes of a decoded character, and of each intermediate token
_CANDIDATES = "candidate_labels"
_LABELS = "labels"
_CHARACTER = 100  # bytes of an answer per character: a token is 400 bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class ServedModel:
    """A model and what serves it; nothing here changes. Every coroutine may be awaited from any event loop, many at a
    time.

    Methods that run the model raise WrongTask, Invalid, Empty, Untokenizable, TooLarge, Overloaded, NotReady, Expired
    or EngineFailed. `route` is the path of the model's default route. `has_labels`: whether it scores, classifies or
    tags. `int8_ranges`: float32[2, D], the least and the greatest value of each dimension; None: fixed ones.
    `span_finder`: of a tagger whose labels the request names. `list_ranker`: of a model that ranks texts together.
    """

    settings: Settings
    checkpoint: Checkpoint
    engine: Engine | RemoteEngine
    scheduler: Scheduler | RemoteScheduler
    texts: TextReader
    pipeline: Pipeline
    in_flight: InFlight
    metrics: ModelMetrics
    readiness: Readiness
    route: str
    has_labels: bool
    int8_ranges: np.ndarray | None = None
    span_finder: SpanFinder | None = None
    list_ranker: ListRanker | None = None

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        options: Options = DEFAULTS,
    ) -> Answer:
        """One vector per text: float32[N, dimensions]. Without `dimensions`, the model's own number of them."""
        self._require("embed")
        vectors.check(dimensions, self.checkpoint.spec.row_size)
        rows, usage = await self._rows(inputs, options, answered=_JSON)
        dimensions = dimensions or self.checkpoint.dimensions
        return Answer(vectors.finish(np.array(rows), dimensions=dimensions, normalize=normalize), usage)

    async def embed_chunks(
        self,
        texts: Sequence[str],
        spans: Sequence[tuple[int, int]] | None = None,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        options: Options = DEFAULTS,
    ) -> Answer:
        """Late chunking (arXiv:2409.04701): texts, or spans of one text in characters, are read together, and each
        vector is the mean of its own tokens: float32[chunks, dimensions]."""
        self._require("embed")
        spec = self.checkpoint.spec
        if not spec.layers or spec.pooling.modes != ("mean",) or spec.head:
            raise Invalid(
                "`late_chunking` needs an encoder whose vectors are means of its tokens", param="late_chunking"
            )
        vectors.check(dimensions, spec.row_size)
        self.pipeline.check_size(spans or texts)
        read = partial(self.texts.read_chunks, texts, spans, options)
        chunked, (states,), usage = await self.pipeline.run(texts, read, options, "tokens", answered=_JSON)
        rows = np.array([states[of].mean(0) for of in chunked.chunks], np.float32)
        dimensions = dimensions or self.checkpoint.dimensions
        return Answer(vectors.finish(rows, dimensions=dimensions, normalize=normalize), usage)

    def lowered(self, rows: np.ndarray, to: precision.Precision) -> np.ndarray:
        """Embeddings, float32[N, D], in fewer bits. The ranges of the settings are for rows of all dimensions."""
        ranges, width = self.int8_ranges, rows.shape[1]
        fitting = ranges if ranges is not None and ranges.shape[1] == width else precision.fixed_ranges(width)
        return precision.lowered(rows, to, fitting)

    async def classify_tokens(
        self, inputs: Sequence[Input], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Answer:
        """The scores of every label for each token, special tokens included: a list of float32[tokens, labels]."""
        self._require("entities")
        rows, usage = await self._rows(inputs, options, answered=_JSON)
        return Answer([scores.activate(row, scoring or "softmax") for row in rows], usage)

    async def embed_tokens(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        normalize: bool = False,
        options: Options = DEFAULTS,
    ) -> Answer:
        """A list of float32[tokens, dimensions], one per text: the last hidden state of every token, special tokens
        included. For a ColBERT model, the vectors that are compared, of documents unless the prompt is `query`. For
        BGE-M3, its multi-vectors."""
        if self._is("sparse"):
            raise WrongTask("`embed_all` is not available for SPLADE models; POST /embed_sparse")
        self._require("embed_tokens")
        if not self._is("embedding"):
            rows, usage = await self._compared(inputs, options)
        else:
            rows, usage = await self._rows(inputs, options, "tokens", answered=_JSON)
        heads = self.checkpoint.m3
        if heads is not None:
            rows = await self.pipeline.off_loop(lambda: [m3.token_vectors(row, heads) for row in rows])
        vectors.check(dimensions, rows[0].shape[1])
        return Answer([vectors.finish(row, dimensions=dimensions, normalize=normalize) for row in rows], usage)

    async def _compared(self, inputs: Sequence[Input], options: Options) -> tuple[list[Any], Usage]:
        """The vectors of a ColBERT model's texts."""
        role: Role = "query" if options.prompt_name == "query" else "document"
        read = partial(self.texts.read, inputs, options, role)
        return (await self.pipeline.run(inputs, read, options, answered=_JSON))[1:]

    async def embed_sparse(self, inputs: Sequence[Input], *, options: Options = DEFAULTS) -> Answer:
        """One sparse vector per text: a list of Terms."""
        self.readiness.check(self.engine)
        lookup, heads = self.checkpoint.lookup, self.checkpoint.m3
        if lookup is not None and lookup.is_query(options.prompt_name):
            return await self._look_up(inputs, lookup, options)
        if heads is None:
            self._require("embed_sparse")
            return self._sparse_answer(*await self._rows(inputs, options))
        encodings, rows, usage = await self.pipeline.run(
            inputs, partial(self.texts.read, inputs, options), options, "tokens"
        )

        def weigh() -> list[sparse.Terms]:
            unused = self.texts.tokenizer.unused
            pairs = zip(encodings, rows, strict=True)
            return [m3.terms(states, encoding.ids, heads, unused) for encoding, states in pairs]

        return self._sparse_answer(await self.pipeline.off_loop(weigh), usage)

    async def _look_up(self, inputs: Sequence[Input], lookup: Lookup, options: Options) -> Answer:
        """Queries of a model that has their terms in a table. Special tokens are no terms."""
        bare = replace(options, add_special_tokens=False)
        encodings, usage = await self.pipeline.only_read(inputs, partial(self.texts.read, inputs, bare), bare)
        most, weights = self.checkpoint.max_terms, lookup.weights
        return self._sparse_answer([sparse.looked_up(of.ids, weights, most) for of in encodings], usage)

    def _sparse_answer(self, rows: list[sparse.Terms], usage: Usage) -> Answer:
        """An answer whose size is unknown before it is made."""
        self.in_flight.admit(_TERM * sum(len(terms.indices) for terms in rows))
        return Answer(rows, usage)

    async def similarity(self, source: str, sentences: Sequence[str], *, options: Options = DEFAULTS) -> Answer:
        """Of the source to each sentence, the cosine unless the checkpoint says otherwise: float32[N]."""
        self._require("similarity")
        rows, usage = await self._rows([source, *sentences], options)
        of = self.checkpoint.similarity
        found = (vectors.unit(np.array(rows)) if of.of_units else np.array(rows))[:, : self.checkpoint.dimensions]
        return Answer(vectors.similarities(found[:1], found[1:], of.name)[0], usage)

    async def rerank(
        self, query: str, texts: Sequence[str], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Ranked:
        """The relevance of each text to the query: float32[N], a cross-encoder's score, ColBERT's MaxSim, or the cosine
        of a model that ranks the texts together."""
        self._require("rerank")
        if self.list_ranker is not None:
            return await self.list_ranker.rank(query, texts, options)
        return await self.score([(query, text) for text in texts], scoring=scoring, options=options)

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, scoring: Scoring | None = None, options: Options = DEFAULTS
    ) -> Ranked:
        """float32[N]: a cross-encoder's score of each pair, ColBERT's MaxSim, or the cosine of an embedding model.
        `scoring` replaces the cross-encoder's own function from logits to scores."""
        self._require("score")
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
        self._require("classify")
        rows, usage = await self._rows(inputs, options, answered=_LABEL + longest(self.checkpoint.labels))
        logits = np.array(rows)
        found = scores.activate(logits, scoring or self.checkpoint.scoring)
        return Ranked(found, usage, scores.best_first(logits))

    async def zero_shot(
        self,
        texts: Sequence[str],
        candidates: Sequence[str],
        *,
        before: str,
        after: str,
        each: bool = False,
        options: Options = DEFAULTS,
    ) -> Ranked:
        """How far each text entails each candidate between `before` and `after`, by a model of natural language
        inference: float32[N, candidates]. With `each` a candidate does not compete with the others."""
        self._require("classify")
        entailment = self._entailment()
        empty = next((i for i, text in enumerate(texts) if not text), None)
        if empty is not None:
            raise Empty("`inputs` cannot be empty", param="inputs", place=empty)
        self.pipeline.check_size(range(len(texts) * len(candidates)))
        self.in_flight.admit(size(candidates) + (len(before) + len(after)) * len(candidates))
        hypotheses = [before + candidate + after for candidate in candidates]
        pairs = [(text, hypothesis) for text in texts for hypothesis in hypotheses]
        rows, usage = await self._rows(pairs, options, answered=_LABEL + max(map(len, candidates)))
        logits = np.array(rows).reshape(len(texts), len(candidates), -1)
        found, order = scores.entailments(logits, entailment, each=each)
        return Ranked(found, usage, scores.best_first(order))

    def _entailment(self) -> int:
        """The place of the label for entailment. Raises Invalid if the model has none."""
        labels = self.checkpoint.labels
        found = next((i for i, label in enumerate(labels) if label.lower().startswith("entail")), None)
        if found is None:
            known = f"this model's are {short(', '.join(labels))}"
            raise Invalid(f"`candidate_labels` needs a model with a label `entailment`; {known}", param=_CANDIDATES)
        return found

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
        self._require("entities")
        if self.span_finder is not None:
            reason = 'this model finds entities of any kind: name them, such as ["person", "city"]'
            raise Invalid(f"`labels` is required: {reason}", param=_LABELS)
        tokenizer, labels = self.texts.tokenizer, self.checkpoint.labels
        name = longest(self.checkpoint.labels)
        answered = _LABEL + name if raw_scores else (ENTITY + name) / len(labels)

        def check(tokens: int) -> None:
            self.in_flight.check(int(tokens * self.checkpoint.spec.token_size * (FLOAT + answered)))

        read = naming(texts, partial(tokenizer.windows, texts, truncate=options.truncate is not False, check=check))
        windows, rows, usage = await self.pipeline.run(texts, read, options, answered=answered)

        def find() -> list[list[entities.Entity]]:
            logits = np.concatenate(rows)
            if strategy == "none":
                known = (tokenizer.vocabulary, tokenizer.unknown)
                return entities.tokens(texts, windows, logits, labels, *known, raw_scores=raw_scores)
            return entities.aggregate(texts, windows, logits, labels, strategy, ignore_labels, raw_scores=raw_scores)

        return Answer(await self.pipeline.off_loop(find), usage)

    async def named_entities(
        self, texts: Sequence[str], labels: Mapping[str, str], wanted: Wanted, *, options: Options = DEFAULTS
    ) -> Answer:
        """The same, of the kinds that `labels` name; their values are the words that the model reads."""
        self._require("entities")
        if self.span_finder is None:
            raise Invalid("`labels`: this model has labels of its own; leave it out", param=_LABELS)
        return await self.span_finder.find(texts, labels, wanted, options)

    def prompts(self) -> Prompts:
        self.readiness.check(self.engine)
        return self.checkpoint.prompts

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[TextTokens]:
        self.readiness.check(self.engine)
        self.pipeline.check_size(texts)
        tokenizer = self.texts.tokenizer
        prompt = tokenizer.prompt(prompt_name)
        added = tokenizer.added(prompt, specials=add_special_tokens)
        self.in_flight.admit(_CHARACTER * (size(texts) + added * len(texts)))
        with self.pipeline.admission:
            return await self.pipeline.off_loop(
                lambda: self.texts.tokenizer.tokenize(texts, add_special_tokens=add_special_tokens, prompt=prompt),
                of=texts,
            )

    async def decode(self, ids: Sequence[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        self.readiness.check(self.engine)
        self.pipeline.check_size(ids)
        tokenizer = self.texts.tokenizer
        with self.pipeline.admission:
            size = await self.pipeline.off_loop(naming(ids, partial(tokenizer.decoded, ids)), of=ids)
            self.in_flight.admit(_DECODED * size + _PIECE * sum(map(len, ids)))
            read = partial(tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)
            return await self.pipeline.off_loop(read, of=ids)

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
            queries = self.texts.read(sides["query"], options, "query" if late else None)
            return queries + self.texts.read(
                sides["document"], self.texts.of_documents(options), "document" if late else None
            )

        _, rows, usage = await self.pipeline.run(pairs, read, options)
        found = iter(rows)
        first, second = ({text: next(found) for text in texts} for texts in sides.values())
        return first, second, usage

    def _units(self, side: _Side) -> np.ndarray:
        """The embeddings of one side, of length 1: float32[texts, dimensions]."""
        return vectors.unit(np.array(list(side.values()))[:, : self.checkpoint.dimensions])

    async def _maxsim(self, pairs: Sequence[tuple[str, str]], options: Options) -> Ranked:
        *sides, usage = await self._sides(pairs, options)

        def compare() -> np.ndarray:
            queries, documents = sides
            late = self.checkpoint.late_interaction
            mean = late is not None and late.mean
            return np.array(
                [late_interaction.maxsim(queries[q], documents[d], mean=mean) for q, d in pairs], np.float32
            )

        found = await self.pipeline.off_loop(compare)
        return Ranked(found, usage, scores.best_first(found))

    async def _rows(
        self, inputs: Sequence[Input], options: Options, kind: RowKind | None = None, answered: float = 0
    ) -> tuple[list[Any], Usage]:
        """The kept value of each input's row."""
        return (await self.pipeline.run(inputs, partial(self.texts.read, inputs, options), options, kind, answered))[1:]

    def _is(self, task: Task) -> bool:
        self.readiness.check(self.engine)
        return self.checkpoint.task == task

    def has(self, ability: Ability) -> bool:
        return abilities.has(self.checkpoint, ability)

    def _require(self, ability: Ability) -> None:
        """Raises WrongTask, with the route that fits, unless the model has an ability."""
        self.readiness.check(self.engine)
        if not self.has(ability):
            task = self.checkpoint.task
            raise WrongTask(f"{abilities.NEEDS[ability].refusal}; its task is {task}: POST {self.route}")
