"""A model in this process: the engine, the scheduler and the answers of the server, without HTTP."""

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import numpy as np
from tqdm import tqdm

from bei.checkpoint.task import Task
from bei.errors import Invalid, NotReady, SetupError, short
from bei.serving.answers import Answer, Options
from bei.serving.lists import answered, unhurried
from bei.serving.service import Service
from bei.settings import ModelSettings, Settings, several
from bei.tasks.entities import Entity, Strategy
from bei.tasks.named_entities import Wanted
from bei.tasks.precision import Precision, lowered
from bei.tasks.sparse import Terms
from bei.tasks.vectors import pairwise, similarities

P = ParamSpec("P")
R = TypeVar("R")

_DOCUMENTS = ("passage", "corpus")

Ask = Callable[[Sequence[Any]], Awaitable[Answer]]


def _blocking(
    method: "Callable[Concatenate[Model, P], Coroutine[Any, Any, R]]",
) -> "Callable[Concatenate[Model, P], R]":
    """The same method, which waits for its answer: in a notebook, too, whose thread has a loop of its own."""

    def blocking(self: "Model", /, *args: P.args, **options: P.kwargs) -> R:
        return self._wait(method(self, *args, **options))

    functools.update_wrapper(blocking, method).__name__ = method.__name__.removeprefix("a")
    return blocking


class Model:
    """A model of any task. Every method of the task has an async twin: `embed`, `aembed`.

    A text that is too long is cut, unless `truncate` is false. Methods raise the errors of `bei.errors`, as the server
    answers them: WrongTask for a method that the model lacks, Empty, Invalid, Untokenizable. They are safe to call from
    several threads; calls at the same time share batches.
    """

    def __init__(self, model: str | os.PathLike[str], **settings: Any):
        """Loads a folder or a repository of the hub; `settings` have the names of docs/settings.md, such as `engine`,
        `precision`, `threads`, `pooling` and `revision`, and override the environment's. Raises SetupError."""
        _check_names(settings)
        self._start(several.for_all([several.of_model(os.fspath(model))], **settings)[0])

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The model of whole settings, such as those of a config.yaml. Raises SetupError."""
        made = cls.__new__(cls)
        made._start(settings)
        return made

    def _start(self, settings: Settings) -> None:
        self._service = Service(unhurried(settings))
        self._service.load()
        self._model = self._service.model
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bei-model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the engine. The model answers no more."""
        if self._loop.is_closed():
            return
        self._service.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def task(self) -> Task:
        return self._model.checkpoint.task

    @property
    def computes_in(self) -> str:
        """The precision that its engine chose or was asked for, and the device: `int8 on cpu x 2, avx2`."""
        facts = self._model.engine.facts
        return f"{facts.computes_in} on {facts.device}"

    @property
    def dimensions(self) -> int:
        """Of a whole vector."""
        return self._model.checkpoint.dimensions or self._model.checkpoint.spec.row_size

    @property
    def max_tokens(self) -> int:
        """Of a text."""
        return self._model.checkpoint.max_tokens

    @property
    def labels(self) -> Sequence[str]:
        """Of a classifier or a tagger, in the order of its scores."""
        return self._model.checkpoint.labels

    @property
    def prompts(self) -> Mapping[str, str]:
        """By name."""
        return self._model.checkpoint.prompts.texts

    async def aembed(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        prompt_name: str | None = None,
        instruction: str | None = None,
        truncate: bool | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """float32[texts, dimensions]. `prompt_name` chooses a prompt of the model, `instruction` is one."""
        options = Options(truncate=truncate, prompt_name=prompt_name, instruction=instruction)
        ask = functools.partial(self._model.embed, dimensions=dimensions, normalize=normalize, options=options)
        return await self._stacked(texts, ask, dimensions or self.dimensions, show_progress=show_progress)

    async def aembed_tokens(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        truncate: bool | None = None,
        show_progress: bool = False,
    ) -> list[np.ndarray]:
        """A list of float32[tokens, D]: the state of each token; of a ColBERT model, the vectors that are compared."""
        options = Options(truncate=truncate, prompt_name=prompt_name)
        ask = functools.partial(self._model.embed_tokens, options=options)
        return await self._listed(texts, ask, show_progress=show_progress)

    async def asparse(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        truncate: bool | None = None,
        show_progress: bool = False,
    ) -> list[Terms]:
        """The terms of each text: indices into the vocabulary, ascending, and their weights."""
        options = Options(truncate=truncate, prompt_name=prompt_name)
        ask = functools.partial(self._model.embed_sparse, options=options)
        return await self._listed(texts, ask, show_progress=show_progress)

    async def arerank(
        self, query: str, documents: Sequence[str], *, truncate: bool | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """The relevance of each document to the query, in the order of the documents: float32[documents]."""
        if self._model.list_ranker is not None and len(documents):
            return np.asarray((await self._model.rerank(query, documents, options=Options(truncate=truncate))).rows)
        pairs = [(query, document) for document in documents]
        return await self.ascore(pairs, truncate=truncate, show_progress=show_progress)

    async def ascore(
        self, pairs: Sequence[tuple[str, str]], *, truncate: bool | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """The score of each pair: a reranker's, or the cosine of an embedding model: float32[pairs]."""
        ask = functools.partial(self._model.score, options=Options(truncate=truncate))
        return await self._stacked(_checked(pairs), ask, show_progress=show_progress)

    async def aclassify(
        self, texts: Sequence[str], *, truncate: bool | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """The score of each label for each text: float32[texts, labels]."""
        ask = functools.partial(self._model.classify, options=Options(truncate=truncate))
        return await self._stacked(texts, ask, len(self.labels), show_progress=show_progress)

    async def aentities(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy = "simple",
        ignore_labels: Sequence[str] = ("O",),
        show_progress: bool = False,
    ) -> list[list[Entity]]:
        """The entities of each text."""
        ask = functools.partial(self._model.entities, strategy=strategy, ignore_labels=ignore_labels)
        return await self._listed(texts, ask, show_progress=show_progress)

    async def anamed_entities(
        self,
        texts: Sequence[str],
        labels: Sequence[str] | Mapping[str, str],
        *,
        threshold: float = 0.5,
        flat_ner: bool = True,
        multi_label: bool | None = None,
        truncate: bool | None = None,
        show_progress: bool = False,
    ) -> list[list[Entity]]:
        """The entities of each text that `labels` name, for a GLiNER: names, or a description of each. The others are
        the arguments of its library. Raises Invalid for a threshold that is no share."""
        if not 0 <= threshold <= 1:
            raise Invalid(f"`threshold` must be from 0 to 1, not {short(threshold)}", param="threshold")
        wanted = Wanted(threshold=threshold, flat=flat_ner, each=multi_label)
        named = dict(labels) if isinstance(labels, Mapping) else {label: label for label in labels}
        if not named or isinstance(labels, str):
            raise Invalid("`labels` must be a list of names, or a description of each", param="labels")
        ask = functools.partial(
            self._model.named_entities, labels=named, wanted=wanted, options=Options(truncate=truncate)
        )
        return await self._listed(texts, ask, show_progress=show_progress)

    embed = _blocking(aembed)
    embed_tokens = _blocking(aembed_tokens)
    sparse = _blocking(asparse)
    rerank = _blocking(arerank)
    score = _blocking(ascore)
    classify = _blocking(aclassify)
    entities = _blocking(aentities)
    named_entities = _blocking(anamed_entities)

    def encode(
        self,
        sentences: str | Iterable[str | Mapping[str, Sequence[str]]],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        task_metadata: Any = None,
        prompt_type: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
    ) -> Any:
        """Vectors with the signature of sentence-transformers' `encode`, for programs that are written for it, and of
        mteb's encoders: batches `{"text": [...]}`, and a task, which chooses the prompt.

        `batch_size`, `device` and the names of mteb's data have no effect: batches are packed by tokens, and the engine
        has its device. The ranges of int8 and uint8 are those of the setting `int8_ranges`, or else of these sentences.
        Raises Invalid for both a prompt and its name, and for one sentence without ranges.
        """
        if prompt is not None and prompt_name is not None:
            raise Invalid("`prompt` cannot be set with `prompt_name`; set one of them", param="prompt")
        if task_metadata is not None and prompt is None and prompt_name is None:
            prompt_name = _prompt_of(task_metadata, prompt_type, self.prompts)
        one = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else _unbatched(sentences)
        if output_value == "token_embeddings":
            tokens = self.embed_tokens(texts, prompt_name=prompt_name, show_progress=bool(show_progress_bar))
            return _given(tokens, one=one)
        rows = self.embed(
            texts,
            dimensions=truncate_dim,
            normalize=normalize_embeddings,
            prompt_name=prompt_name,
            instruction=prompt,
            show_progress=bool(show_progress_bar),
        )
        if precision != "float32":
            rows = lowered(rows, precision, self._ranges(rows, precision))
        if convert_to_tensor:
            import torch  # only for those who have it

            return _given(torch.from_numpy(rows), one=one)
        return _given(rows if convert_to_numpy else list(rows), one=one)

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """The similarities of [N, D] and [M, D], or of one vector in place of either: float32[N, M]. They are cosines
        unless the checkpoint says otherwise."""
        return similarities(_rows(embeddings1), _rows(embeddings2), self._model.checkpoint.similarity.name)

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """The similarity of each row of [N, D] to the row of [N, D] with its number: float32[N]. Raises ValueError for
        other numbers of rows."""
        first, second = _rows(embeddings1), _rows(embeddings2)
        if len(first) != len(second):
            raise ValueError(f"{len(first)} rows cannot be compared with {len(second)}, row by row")
        return pairwise(first, second, self._model.checkpoint.similarity.name)

    @property
    def mteb_model_meta(self) -> Any:
        """The name and the revision of the model, for mteb, which asks for them."""
        from mteb.models import ModelMeta  # only for those who have it

        of = self._model.checkpoint
        name = "__".join(PurePath(of.name).parts[-2:])  # of a repository both, of a folder its end
        return ModelMeta.create_empty({"name": f"bei/{name}", "revision": of.revision})

    def _ranges(self, rows: np.ndarray, precision: Precision) -> np.ndarray:
        """float32[2, D]"""
        if self._model.int8_ranges is not None:
            return self._model.int8_ranges[:, : rows.shape[1]]
        if precision.endswith("int8") and len(rows) < 2:
            raise Invalid(f"`precision` {precision}: one sentence has no ranges; set int8_ranges", param="precision")
        return np.stack([rows.min(0), rows.max(0)])

    async def _stacked(self, inputs: Sequence[Any], ask: Ask, *width: int, show_progress: bool) -> np.ndarray:
        """float32[inputs, *width]"""
        found = await self._answers(inputs, ask, show_progress=show_progress)
        rows: np.ndarray = np.concatenate([np.empty((0, *width), np.float32), *(answer.rows for answer in found)])
        return rows

    async def _listed(self, texts: Sequence[str], ask: Ask, *, show_progress: bool) -> list[Any]:
        return [row for answer in await self._answers(texts, ask, show_progress=show_progress) for row in answer.rows]

    async def _answers(self, inputs: Sequence[Any], ask: Ask, *, show_progress: bool) -> list[Answer]:
        """Raises Invalid for a text alone, whose letters would be texts."""
        if isinstance(inputs, str):
            raise Invalid("`texts` is one text; put it in a list", param="texts")
        if not len(inputs):
            return []
        with tqdm(total=len(inputs), unit=" texts", disable=not show_progress) as bar:

            async def told(some: Sequence[Any]) -> Answer:
                answer = await ask(some)
                bar.update(len(some))
                return answer

            return await answered(inputs, told, self._service.settings.max_client_batch_size, _size)

    def _wait(self, answer: Coroutine[Any, Any, R]) -> R:
        """Raises NotReady once the model is closed."""
        if self._loop.is_closed():
            answer.close()
            raise NotReady("the model is closed")
        future = asyncio.run_coroutine_threadsafe(answer, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, too: what nobody waits for is not computed
            future.cancel()
            raise


def _unbatched(sentences: Iterable[str | Mapping[str, Sequence[str]]]) -> list[str]:
    """The texts of batches, or of a list. Raises Invalid for a batch without texts, such as one of images."""
    found: list[str] = []
    for one in sentences:
        if isinstance(one, str):
            found.append(one)
        elif "text" in one:
            found += one["text"]
        else:
            raise Invalid(f"`sentences`: a batch has no `text`, but {', '.join(one)}", param="sentences")
    return found


def _prompt_of(task: Any, kind: Any, prompts: Mapping[str, str]) -> str | None:
    """The name of mteb's prompt for a task: its own before its type's, before that of queries or documents
    (mteb.models.abs_encoder.get_prompt_name); of documents sentence-transformers has three names."""
    own = [f"{name}{end}" for name in (task.name, task.type) for end in ([f"-{kind.value}", ""] if kind else [""])]
    kinds = [] if kind is None else [kind.value, *(_DOCUMENTS if kind.value == "document" else ())]
    return next((name for name in (*own, *kinds) if name in prompts), None)


def _rows(embeddings: np.ndarray) -> np.ndarray:
    """float32[N, D] of numbers of any type."""
    return np.atleast_2d(np.asarray(embeddings, np.float32))


def _checked(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Raises Invalid for a text alone, whose letters would be texts, and for another number of them."""
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise Invalid(f"`pairs[{i}]`: a pair has two texts", param="pairs")
    return [(first, second) for first, second in pairs]


def _check_names(settings: Mapping[str, Any]) -> None:
    known = set(ModelSettings.model_fields)
    unknown = sorted(settings.keys() - known)
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        raise SetupError(f"{unknown[0]} is no setting of a model{f'; {near[0]} is one' if near else ''}")


def _size(one: str | tuple[str, str]) -> int:
    """In characters."""
    return len(one) if isinstance(one, str) else sum(map(len, one))


def _given(rows: Any, *, one: bool) -> Any:
    """The row of a text alone, or all."""
    return rows[0] if one else rows
