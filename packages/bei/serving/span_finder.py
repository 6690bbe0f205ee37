"""Entities whose labels the request names: one model's head, behind its tokenizer and queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bei.checkpoint.load import Checkpoint
from bei.inflight import InFlight
from bei.serving.answers import Answer, Options
from bei.serving.pipeline import FLOAT, Pipeline
from bei.serving.texts import TextReader, naming
from bei.tasks import named_entities
from bei.tasks.entities import Entity
from bei.tasks.named_entities import Held, Wanted
from bei.tasks.span_head import SpanHead

ENTITY = 520
"""Approximate bytes of one in an answer, its intermediate objects included; its label comes to them."""


@dataclass(frozen=True)
class SpanFinder:
    head: SpanHead
    texts: TextReader
    pipeline: Pipeline
    in_flight: InFlight
    checkpoint: Checkpoint

    async def find(self, texts: Sequence[str], labels: Mapping[str, str], wanted: Wanted, options: Options) -> Answer:
        """A list of Entity for each text, of the kinds that `labels` name; their values are the words that the model
        reads. Raises what a method of ServedModel raises."""
        names, entity = list(labels), ENTITY + longest(list(labels))

        def check(tokens: int) -> None:
            self.in_flight.check(tokens * self.checkpoint.spec.token_size * FLOAT)

        words = self.texts.tokenizer.words
        read = partial(words.read, texts, labels, truncate=options.truncate is not False, check=check)
        before = "".join((*names, *labels.values()))  # they stand before every text
        pairs = [(text, before) for text in texts]
        windows, rows, usage = await self.pipeline.run(pairs, naming(texts, read), options)

        if self.head.by_label and wanted.each is not False:
            wanted = replace(wanted, each=True, by_label=True)

        def find() -> list[list[Entity]]:
            spans = self.head.spans(windows, rows, wanted.least, each=bool(wanted.each))
            return named_entities.find(texts, windows, spans, names, wanted, Held(entity, self.in_flight.check))

        found = await self.pipeline.off_loop(find, of=texts)
        self.in_flight.admit(entity * sum(map(len, found)))
        return Answer(found, usage)


def longest(labels: Sequence[str]) -> int:
    """In bytes."""
    return max((len(label.encode(errors="replace")) for label in labels), default=0)
