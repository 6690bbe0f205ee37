"""Late chunking: Jina's field, and spans of one text."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from bei.api.output import Written
from bei.errors import Invalid
from bei.serving.answers import Options
from bei.tokenizer import Input

Place = Annotated[StrictInt, Field(ge=0)]
_CUTTING = ("truncate_prompt_tokens", "truncation_direction", "truncation_side", "truncate")


class Chunking(Written):
    """`late_chunking`: the texts are one text, and each vector is the mean of its own tokens in it. With `chunks` there
    is one text, and a vector for each of its spans: [the first character, the one after the last]."""

    late_chunking: StrictBool | None = None
    chunks: Annotated[list[tuple[Place, Place]], Field(min_length=1)] | None = None

    def texts(self, inputs: Sequence[Input], options: Options) -> list[str]:
        """Raises Invalid for what late chunking cannot do."""
        name = "chunks" if self.chunks else "late_chunking"
        texts = [item for item in inputs if isinstance(item, str)]
        if len(texts) < len(inputs) or (self.chunks and len(texts) != 1):
            raise Invalid(f"`{name}` needs {'one text' if self.chunks else 'texts, not token ids'}", param=name)
        if self.chunks and self.late_chunking is False:
            raise Invalid("`chunks` contradicts `late_chunking`; send one of them", param="chunks")
        if options.max_tokens is not None or options.truncation_direction is not None:
            cutting = next(of for of in _CUTTING if getattr(self, of) is not None)
            raise Invalid(f"`{cutting}` cannot be set with `{name}`, which cuts nothing", param=cutting)
        return texts
