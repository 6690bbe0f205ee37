"""TEI's dialect."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, StrictBool, StrictInt, StrictStr
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api.call import Call
from bei.api.fields import Body, Part
from bei.api.inputs import IdLists, Inputs, PredictInputs, Texts, TopN
from bei.api.readings import Pairs, Reading, Scored, Vectors
from bei.api.reply import Result
from bei.api.routes import Dialect, Route
from bei.api.shapes import LABELS_OF_PROFITS, PROFITS, Prediction, predictions
from bei.api.zero_shot import ZeroShot, classified, stated
from bei.checkpoint.task import Scoring
from bei.errors import Empty, Invalid
from bei.serving.model import ServedModel

_TEXT = {"type": "string"}


class Embed(Vectors):
    inputs: Inputs
    input_fields = ("inputs",)


class EmbedAll(Reading):
    """TEI's client also sends `normalize`; the values stay the model's own, as in TEI."""

    inputs: Inputs
    normalize: StrictBool | None = None
    input_fields = ("inputs",)


class SimilarityInputs(Part):
    source_sentence: StrictStr
    sentences: list[StrictStr]


class Similarity(Body):
    inputs: SimilarityInputs
    parameters: Reading | None = None

    def given(self) -> Mapping[str, Any]:
        return {"inputs.source_sentence": self.inputs.source_sentence, "inputs.sentences": self.inputs.sentences}


class Tokenize(Body):
    inputs: Texts
    add_special_tokens: StrictBool | None = None
    prompt_name: StrictStr | None = None
    input_fields = ("inputs",)


class Decode(Body):
    ids: IdLists
    skip_special_tokens: StrictBool | None = None
    input_fields = ("ids",)


class Rerank(Pairs):
    """If there are more than `top_n` texts, only the best are returned; unset or 0 means all."""

    query: StrictStr
    texts: list[StrictStr]
    return_text: StrictBool | None = None
    top_n: TopN = None
    input_fields = ("query", "texts")


class ClassificationParameters(ZeroShot):
    """huggingface_hub's parameters."""

    top_k: Annotated[StrictInt, Field(ge=1)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class Predict(Reading, Scored, ZeroShot):
    """With the key `parameters`, whatever its value, the answer is nested; unless there are `candidate_labels`, because
    clients read that answer flat."""

    inputs: PredictInputs
    parameters: ClassificationParameters | None = None

    def given(self) -> Mapping[str, Any]:
        return {"inputs": self.inputs.inputs}


class Token(TypedDict):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class SparseValue(TypedDict):
    index: int
    value: float


class Rank(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


async def embed(model: ServedModel, body: Embed, call: Call) -> Result:
    answer = await model.embed(body.inputs, **body.finish(), options=body.options(model, call))
    return Result(answer.rows, answer.usage, len(body.inputs))


async def embed_all(model: ServedModel, body: EmbedAll, call: Call) -> Result:
    answer = await model.embed_tokens(body.inputs, options=body.options(model, call))
    return Result(answer.rows, answer.usage, len(body.inputs))


async def embed_sparse(model: ServedModel, body: EmbedAll, call: Call) -> Result:
    answer = await model.embed_sparse(body.inputs, options=body.options(model, call))
    return Result(answer.rows, answer.usage, len(body.inputs))


async def similarity(model: ServedModel, body: Similarity, call: Call) -> Result:
    options = (body.parameters or Reading()).options(model, call)
    sentences = body.inputs.sentences
    if not sentences:
        raise Empty("`inputs.sentences` cannot be empty")
    answer = await model.similarity(body.inputs.source_sentence, sentences, options=options)
    return Result(answer.rows, answer.usage, len(sentences) + 1)


async def tokenize(model: ServedModel, body: Tokenize, call: Call) -> Result:
    tokens = await model.tokenize(
        body.inputs, add_special_tokens=body.add_special_tokens is not False, prompt_name=body.prompt_name
    )
    return Result(tokens)


async def decode(model: ServedModel, body: Decode, call: Call) -> Result:
    return Result(await model.decode(body.ids, skip_special_tokens=body.skip_special_tokens is not False))


async def rerank(model: ServedModel, body: Rerank, call: Call) -> Result:
    """In the order of the texts, as in BEI; best first, as in TEI, if the settings say so."""
    answer = await model.rerank(body.query, body.texts, scoring=body.scoring(), options=body.options(model, call))
    best = answer.order[: body.top_n or None].tolist()
    order = best if model.settings.rerank_order == "score" else sorted(best)
    ranks = [
        {"index": i, "score": answer.rows[i], **({"text": body.texts[i]} if body.return_text else {})} for i in order
    ]
    return Result(ranks, answer.usage, len(ranks))


async def predict(model: ServedModel, body: Predict, call: Call) -> Result:
    parameters = body.parameters or ClassificationParameters()
    zero_shot = stated(body, parameters)
    if zero_shot is not None:
        return await _zero_shot(model, body, zero_shot, call)
    functions: dict[str | None, Scoring] = {"sigmoid": "sigmoid", "softmax": "softmax", "none": "identity"}
    answer = await model.classify(
        body.inputs.inputs,
        scoring=functions.get(parameters.function_to_apply) or body.scoring(),
        options=body.options(model, call),
    )
    rows = [row[: parameters.top_k] for row in predictions(answer, model.checkpoint.labels)]
    nested = body.inputs.nested or "parameters" in body.model_fields_set
    return Result(rows if nested else rows[0], answer.usage, len(rows))


async def _zero_shot(model: ServedModel, body: Predict, fields: Mapping[str, Any], call: Call) -> Result:
    parameters = body.parameters or ClassificationParameters()
    other = "parameters.function_to_apply" if parameters.function_to_apply else "raw_scores" if body.scoring() else None
    if other is not None:
        raise Invalid(f"`{other}` cannot be set with `candidate_labels`; leave it out", param=other)
    rows, answer = await classified(model, body.inputs.inputs, fields, body.options(model, call))
    best = [row[: parameters.top_k] for row in rows]
    return Result(best if body.inputs.nested else best[0], answer.usage, len(best))


_TEXTS = ["What is Deep Learning?", "Deep Learning is..."]

PREDICT = Route(
    "/predict",
    predict,
    "Every label of a text or pair, or every label that the request names, with its score, best first",
    body=Predict,
    ability="classify",
    response=list[Prediction] | list[list[Prediction]],
    example={"inputs": PROFITS},
    answer=LABELS_OF_PROFITS,
)
EMBED_ALL = Route(
    "/embed_all",
    embed_all,
    "The last hidden state of every token, or a ColBERT model's vectors",
    body=EmbedAll,
    ability="embed_tokens",
    response=list[list[list[float]]],
    example={"inputs": _TEXTS},
)
EMBED_SPARSE = Route(
    "/embed_sparse",
    embed_sparse,
    "Sparse vectors over the vocabulary",
    body=EmbedAll,
    ability="embed_sparse",
    response=list[list[SparseValue]],
    example={"inputs": "deep"},
    answer=[
        [
            {"index": 1998, "value": 0.06943528},
            {"index": 2312, "value": 0.09982256},
            {"index": 2521, "value": 1.0190876},
            {"index": 2784, "value": 2.4607613},
            {"index": 3033, "value": 0.0022080955},
            {"index": 4020, "value": 0.80508465},
            {"index": 4206, "value": 1.585874},
            {"index": 4578, "value": 0.62970716},
            {"index": 4840, "value": 0.5160347},
            {"index": 5995, "value": 1.7892799},
            {"index": 6748, "value": 0.45463797},
        ]
    ],
)
DIALECT = Dialect(
    "tei",
    (
        Route(
            "/embed",
            embed,
            "Embeddings",
            body=Embed,
            ability="embed",
            response=list[list[float]],
            example={"inputs": _TEXTS, "dimensions": 4},
            answer=[[-0.8924037, -0.3814904, 0.22631614, 0.08283565], [-0.1630781, -0.7964107, 0.47286087, -0.3399089]],
        ),
        EMBED_ALL,
        EMBED_SPARSE,
        Route(
            "/similarity",
            similarity,
            "Cosines of one sentence to others",
            body=Similarity,
            ability="similarity",
            response=list[float],
            example={"inputs": {"source_sentence": _TEXTS[0], "sentences": _TEXTS[1:]}},
            answer=[0.6746493],
        ),
        Route(
            "/tokenize",
            tokenize,
            "Tokens, with where they stand in the text's UTF-8 bytes",
            body=Tokenize,
            response=list[list[Token]],
            example={"inputs": "Deep"},
            answer=[
                [
                    {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None},
                    {"id": 2784, "text": "Deep", "special": False, "start": 0, "stop": 4},
                    {"id": 102, "text": "[SEP]", "special": True, "start": None, "stop": None},
                ]
            ],
        ),
        Route(
            "/decode",
            decode,
            "Token ids to texts",
            body=Decode,
            response=list[str],
            example={"ids": [7592, 2088]},
            answer=["hello world"],
        ),
        PREDICT,
    ),
)
