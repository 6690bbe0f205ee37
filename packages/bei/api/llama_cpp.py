"""llama.cpp's dialect, where it differs from OpenAI's and Jina's: /embedding."""

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.fields import Synonyms
from bei.api.inputs import Inputs
from bei.api.readings import Vectors
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.serving.model import ServedModel


class Embedding(Synonyms, Vectors):
    content: Inputs = Field(validation_alias=AliasChoices("content", "input"))
    input_fields = ("content",)


class Embedded(TypedDict):
    """`embedding` has one vector: that of the text."""

    index: int
    embedding: list[list[float]]


async def embedding(model: ServedModel, body: Embedding, call: Call) -> Result:
    answer = await model.embed(body.content, **body.finish(), options=body.options(model, call))
    rows = [{"index": i, "embedding": [row]} for i, row in enumerate(answer.rows)]
    return Result(rows, answer.usage, len(rows))


DIALECT = Dialect(
    "llama_cpp",
    (
        Route(
            "/embedding",
            embedding,
            "Embeddings, as llama.cpp's",
            body=Embedding,
            ability="embed",
            response=list[Embedded],
            example={"content": "What is Deep Learning?", "dimensions": 4},
            answer=[{"index": 0, "embedding": [[-0.8924037, -0.3814904, 0.22631614, 0.08283565]]}],
        ),
    ),
)
