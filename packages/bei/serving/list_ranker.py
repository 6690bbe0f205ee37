"""Documents that a model ranks together: one model's lists, behind its tokenizer and queue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bei.serving.answers import Options, Ranked
from bei.serving.pipeline import Pipeline
from bei.serving.texts import TextReader, naming
from bei.tasks import lists
from bei.tasks.scores import best_first


@dataclass(frozen=True)
class ListRanker:
    texts: TextReader
    pipeline: Pipeline

    async def rank(self, query: str, documents: Sequence[str], options: Options) -> Ranked:
        """The cosine of each document with the query: float32[N]. Raises what a method of ServedModel raises."""
        pairs = [(query, document) for document in documents]
        read = partial(self.texts.read_lists, query, documents, options)
        prompts, rows, usage = await self.pipeline.run(pairs, naming(pairs, read), options)
        found = await self.pipeline.off_loop(partial(lists.scores, rows))
        return Ranked(found, replace(usage, truncated_texts=prompts.truncated), best_first(found))
