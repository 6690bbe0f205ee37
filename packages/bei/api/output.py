"""How embeddings are written: the types of their numbers, as lists or in base64, with the names of every family."""

import sys
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator

from bei.api.fields import agreed
from bei.api.readings import Vectors
from bei.errors import Invalid
from bei.serving.model import ServedModel
from bei.tasks.precision import Bits, Integers, Precision, raised

Encoding = Literal["float", "base64"]
Numbers = Literal["float", Integers, Bits]
EmbeddingType = Literal[Numbers, "base64"]


@dataclass(frozen=True)
class Form:
    """`big`: the most significant byte comes first in base64."""

    precision: Precision = "float32"
    base64: bool = False
    big: bool = False

    def written(self, rows: np.ndarray, model: ServedModel) -> Iterable[np.ndarray | str]:
        """float32[N, D] → one vector of an answer each."""
        if self is _PLAIN:
            return rows
        return self._written(model.lowered(rows, self.precision) if self.precision != "float32" else rows)

    def matrices(self, rows: Iterable[np.ndarray], model: ServedModel) -> Iterable[np.ndarray | str]:
        """float32[tokens, D] of each text → the same of an answer; in base64 row after row."""
        return self._written([model.lowered(row, self.precision) for row in rows])

    def _written(self, made: Iterable[np.ndarray]) -> Iterable[np.ndarray | str]:
        if not self.base64:
            return [raised(row, self.precision) for row in made]
        return [b64encode((row if self.big == _IS_BIG else row.byteswap()).tobytes()).decode() for row in made]


_IS_BIG = sys.byteorder == "big"
_PLAIN, _BASE64 = Form(), Form(base64=True)
FORMS: dict[EmbeddingType, Form] = {
    "float": _PLAIN,
    "base64": _BASE64,
    "int8": Form("int8"),
    "uint8": Form("uint8"),
    "binary": Form("binary"),
    "ubinary": Form("ubinary"),
}


def _only(value: Any) -> Any:
    """The item of a list of one, as Jina sends it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


OneType = Annotated[EmbeddingType | None, BeforeValidator(_only)]


class Written(Vectors):
    """The numbers' type is Voyage's `output_dtype`, Jina's and NVIDIA's `embedding_type` (in older clients
    `encoding_type`), or vLLM's `embed_dtype`. `encoding_format` base64 holds them in the order of `endianness`."""

    encoding_format: Encoding | None = None
    output_dtype: Numbers | None = None
    embedding_type: OneType = None
    encoding_type: OneType = None
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    endianness: Literal["native", "little", "big"] | None = None

    def form(self) -> Form:
        """Raises Invalid if two fields contradict each other."""
        if self.model_fields_set.isdisjoint(_FORM):
            return _BASE64 if self.encoding_format == "base64" else _PLAIN
        types = {name: getattr(self, name) for name in ("output_dtype", "embedding_type", "encoding_type")}
        numbers: dict[str, Precision | None] = {name: _precision(of) for name, of in types.items()}
        floats = None if self.embed_dtype == "float32" else self.embed_dtype
        precision: Precision = agreed({**numbers, "embed_dtype": floats}) or "float32"
        in_base64 = {name: "base64" if of == "base64" else None for name, of in types.items()}
        form = Form(
            precision,
            agreed({"encoding_format": self.encoding_format, **in_base64}) == "base64",
            self.endianness == "big",
        )
        if form.big and not form.base64:
            raise Invalid("`endianness` big is that of base64; send `encoding_format` base64", param="endianness")
        self.check_length(precision)
        return form


_FORM = frozenset(Written.model_fields) - frozenset(Vectors.model_fields) - {"encoding_format"}


def _precision(kind: EmbeddingType | None) -> Precision | None:
    return None if kind in (None, "base64") else FORMS[kind].precision
